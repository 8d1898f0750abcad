"""Decide what runs when on an engine.

Start stages as soon as the stages that they read are finished, resubmit lost shards, and run a second copy of
stragglers. An engine may lose a task, run it twice or never report it. The commit records are therefore polled: a shard
with a record is done, whatever the engine says, and if no shard was finished for `patience` seconds, all tasks without
a record are resubmitted.
"""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tqdm import tqdm

from pipeline.executors.engine import Engine
from pipeline.executors.readiness import STALE
from pipeline.executors.worker import Outcome, Task
from pipeline.job import Job, Shard, Stage
from pipeline.runtime.progress import say
from store import layout
from store.commits import Record
from store.errors import UsageError

Check = Callable[[Stage, dict[str, Record]], None]

ATTEMPTS = 4  # at one shard before the run gives up
LOOK = 2.0  # seconds between two polls of the records
GRACE = 10.0  # seconds that an engine may take to report a task whose shard is committed
PATIENCE = 900.0  # seconds without a finished shard until all are resubmitted
SLOW, SLOW_SECONDS = 3.0, 60.0  # a straggler takes SLOW times the median of its phase, and at least SLOW_SECONDS


@dataclass
class _Flight:
    """When a task was submitted and, once its shard has a record, when that was first seen (monotonic seconds)."""

    since: float
    committed: float | None = None


@dataclass
class _ActiveStage:
    """A stage that is running: the phases that are left, and the state of the current one."""

    stage: Stage
    phases: deque[list[Shard]]
    bar: tqdm[Any]
    phase: list[Shard] = field(default_factory=list)
    later: bool = False  # whether an earlier phase had shards
    todo: deque[Shard] = field(default_factory=deque)
    missing: set[str] = field(default_factory=set)  # shards of the phase that are to do or in flight
    attempts: dict[str, int] = field(default_factory=dict)
    rates: list[float] = field(default_factory=list)  # seconds per unit of size of each finished shard
    unseen_since: float | None = None  # since when reported shards have no visible record


class Scheduler:
    """Run the shards of stages on an engine.

    `takes` gets the position of a shard in its phase and says whether this run computes the shard. `patience` is in
    seconds.
    """

    def __init__(
        self, job: Job, engine: Engine, takes: Callable[[int], bool] = lambda position: True, patience: float = PATIENCE
    ) -> None:
        self.job, self.engine, self.takes, self.patience = job, engine, takes, patience
        self._open: list[_ActiveStage] = []
        self._flights: dict[Task, _Flight] = {}
        # Other attempts at shards that are done. They run on, and their results are compared with what is committed.
        self._duplicates: set[Task] = set()
        self._progress = self._looked = self._idle_since = time.monotonic()

    def run(self, stages: Sequence[Stage], check: Check) -> None:
        """Run stages to their end. `check` is called with the results after each phase, and raises to refuse them."""
        waiting = list(stages)
        try:
            while waiting or self._open:
                running = {stage.name for stage in waiting} | {o.stage.name for o in self._open}
                for stage in [s for s in waiting if not running & set(s.spec.after)]:
                    waiting.remove(stage)
                    self._begin(stage)
                for active in list(self._open):
                    self._next_phase(active, check)
                self._fill()
                if self._flights:
                    self._handle_outcomes(self.engine.wait(min(LOOK, self.patience)))
                    self._poll_records()
        finally:
            for active in self._open:
                active.bar.close()

    def _begin(self, stage: Stage) -> None:
        phases = stage.phases(self.job)
        done = self.job.store.done(stage.name)
        shards = [s for phase in phases for position, s in enumerate(phase) if self.takes(position)]
        self.job.store.log_plan(stage.name, [len(phase) for phase in phases])
        bar: tqdm[Any] = tqdm(
            desc=f"{stage.name:9s}", total=sum(s.size for s in shards), unit=stage.unit,
            initial=sum(s.size for s in shards if s.name in done),
            disable=not self.job.runtime.progress, mininterval=0.5,
        )  # fmt: skip
        self._open.append(_ActiveStage(stage, deque(phases), bar))

    def _next_phase(self, active: _ActiveStage, check: Check) -> None:
        """Move on to the next phase that lacks shards, if the current one is finished."""
        while not active.missing:
            done = self.job.store.done(active.stage.name)
            check(active.stage, done)
            left = [(position, s) for position, s in enumerate(active.phase) if s.name not in done]
            own_left = [s for position, s in left if self.takes(position)]
            if own_left:  # reported without a visible record: a network file system may show it later, or it is lost
                self._wait_for_sight(active, own_left)
                return
            active.unseen_since = None
            if left:
                say(f"{active.stage.name}: this share is done; the rest of the stage waits for the other shards")
            if left or not active.phases:
                active.bar.close()
                self._open.remove(active)
                return
            active.later = bool(active.phase) or active.later
            active.phase = active.phases.popleft()
            active.rates = []  # sizes of different phases are in different units
            own_missing = [s for position, s in enumerate(active.phase) if self.takes(position) and s.name not in done]
            # The longest come first, so that none of them is left for the end.
            active.todo = deque(sorted(own_missing, key=lambda s: -s.size))
            active.missing = {s.name for s in own_missing}

    def _wait_for_sight(self, active: _ActiveStage, shards: list[Shard]) -> None:
        """Wait for the records of reported shards to become visible; queue the shards again after STALE seconds."""
        now = time.monotonic()
        active.unseen_since = active.unseen_since or now
        if now - active.unseen_since > STALE:
            active.unseen_since, active.todo = None, deque(shards)
            active.missing = {shard.name for shard in shards}
        time.sleep(0.2)

    def _fill(self) -> None:
        """Submit as many tasks as the engine takes, and second copies of stragglers if it has free slots."""
        for active in self._open:
            if not active.todo:
                continue
            in_flight = sum(task.stage == active.stage.name for task in self._flights)
            for _ in range(min(len(active.todo), self.engine.capacity(active.stage.name) - in_flight)):
                self._send(active, active.todo.popleft())
        now = time.monotonic()
        if not self._is_idle():
            self._idle_since = now  # tasks in flight may still be queued by the engine
            return
        for task in self._stragglers(now):
            say(f"{task.stage} {task.shard.name} takes long: a second copy of it is started")
            self._send(self._of(task), task.shard)

    def _send(self, active: _ActiveStage, shard: Shard) -> None:
        attempt = active.attempts.get(shard.name, 0)
        active.attempts[shard.name] = attempt + 1
        task = Task(active.stage.name, shard, attempt, active.later)
        self._flights[task] = _Flight(time.monotonic())
        self.engine.submit(task)

    def _is_idle(self) -> bool:
        """Return whether the engine has free slots for every running stage."""
        return all(len(self._flights) < self.engine.slots(active.stage.name) for active in self._open)

    def _stragglers(self, now: float) -> list[Task]:
        """Return tasks without a second copy that have taken SLOW times the median of their phase.

        Time counts from the submission, or from when the engine last got free slots if that is later. At least three
        shards of the phase must be finished.
        """
        if now - self._idle_since <= SLOW_SECONDS:
            return []
        stragglers = []
        for active in (active for active in self._open if len(active.rates) >= 3):
            usual = statistics.median(active.rates)
            for task, flight in self._flights.items():
                limit = max(SLOW * usual * task.shard.size, SLOW_SECONDS)
                slow = task.stage == active.stage.name and now - max(flight.since, self._idle_since) > limit
                if slow and task not in self._duplicates and not self._twins(task):
                    stragglers.append(task)
        return stragglers

    def _twins(self, task: Task) -> list[Task]:
        """Return the other attempts at the same shard that are in flight."""
        return [t for t in self._flights if t != task and (t.stage, t.shard) == (task.stage, task.shard)]

    def _of(self, task: Task) -> _ActiveStage:
        return next(active for active in self._open if active.stage.name == task.stage)

    def _handle_outcomes(self, outcomes: list[Outcome]) -> None:
        for outcome in outcomes:
            flight = self._flights.pop(outcome.task, None)
            if flight is None:
                continue
            loser = outcome.task in self._duplicates
            self._duplicates.discard(outcome.task)
            if outcome.fatal:
                raise UsageError(outcome.error)
            if not outcome.error and not loser:
                self._finished(outcome.task, outcome.seconds)
            elif not loser:
                self._again(outcome.task, outcome.error)

    def _finished(self, task: Task, seconds: float | None = None) -> None:
        """Count a shard as done; other attempts at it become duplicates."""
        active, name = self._of(task), task.shard.name
        if name not in active.missing:
            return
        active.missing.discard(name)
        active.bar.update(task.shard.size)
        if seconds is not None:
            active.rates.append(seconds / max(task.shard.size, 1))
        self._duplicates |= set(self._twins(task))
        self._progress = time.monotonic()

    def _again(self, task: Task, why: str) -> None:
        """Resubmit a shard, unless it is committed or another attempt at it is in flight.

        Raises UsageError after ATTEMPTS attempts.
        """
        active = self._of(task)
        if self._committed(task):
            self._finished(task)
        elif self._twins(task):
            return
        elif active.attempts[task.shard.name] >= ATTEMPTS:
            raise UsageError(
                f"{task.stage} {task.shard.name} failed {ATTEMPTS} times, last with: {why or 'no report of its worker'}"
                f" (see {self.job.store.root / layout.LOGS}); what is done is kept: run the same command to resume"
            )
        else:
            say(f"{task.stage} {task.shard.name} is resubmitted: {why}")
            active.todo.appendleft(task.shard)

    def _poll_records(self) -> None:
        """Finish tasks that are committed but not reported, and resubmit all tasks if there was no progress."""
        now = time.monotonic()
        if now - self._looked < LOOK:
            return
        self._looked = now
        for task, flight in list(self._flights.items()):
            if task in self._duplicates:
                continue
            if flight.committed is None and self._committed(task):
                flight.committed = now
            if flight.committed is not None and now - flight.committed > GRACE:
                self._abandon(task)
                self._finished(task)
        if now - self._progress > self.patience:
            self._progress = now
            for task in list(self._flights):
                lost = task not in self._duplicates
                self._abandon(task)
                if lost:
                    self._again(task, f"no shard was finished for {self.patience:.0f} s")

    def _abandon(self, task: Task) -> None:
        """Forget a task and stop it."""
        del self._flights[task]
        self._duplicates.discard(task)
        self.engine.drop(task)

    def _committed(self, task: Task) -> bool:
        return (self.job.store.root / layout.record(self.job.store.run, task.stage, task.shard.name)).exists()
