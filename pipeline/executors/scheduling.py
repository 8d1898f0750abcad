"""What runs when on an engine: stages as their inputs are there, lost shards again, stragglers twice.

An engine may lose a task, run it twice or say nothing for ever. So the commit records are looked at all the time: a
shard with a record is done, whatever the engine says; and when nothing has been done for `patience` seconds, whatever
has no record is sent again.
"""

from __future__ import annotations

import statistics
import sys
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
from store import layout
from store.errors import UsageError
from store.publish import Record

Check = Callable[[Stage, dict[str, Record]], None]

ATTEMPTS = 4  # of one shard, before the run gives up
LOOK = 2.0  # seconds between looks at the store
GRACE = 10.0  # seconds an engine may take to report what is committed already
PATIENCE = 900.0  # seconds without progress
SLOW, SLOW_SECONDS = 3.0, 60.0  # a straggler: so many times its stage's median, and at least so long


@dataclass
class _Flight:
    since: float
    committed: float | None = None  # when its record was first seen


@dataclass
class _ActiveStage:
    """A stage that is running: its phases, one after the other."""

    stage: Stage
    phases: deque[list[Shard]]
    bar: tqdm[Any]
    phase: list[Shard] = field(default_factory=list)
    later: bool = False  # whether a phase came before
    todo: deque[Shard] = field(default_factory=deque)
    missing: set[str] = field(default_factory=set)  # of the phase: to do or in flight
    attempts: dict[str, int] = field(default_factory=dict)
    rates: list[float] = field(default_factory=list)  # seconds by size of finished shards
    unseen_since: float | None = None


class Scheduler:
    def __init__(
        self, job: Job, engine: Engine, takes: Callable[[int], bool] = lambda place: True, patience: float = PATIENCE
    ) -> None:
        self.job, self.engine, self.takes, self.patience = job, engine, takes, patience
        self._open: list[_ActiveStage] = []
        self._flights: dict[Task, _Flight] = {}
        self._duplicates: set[Task] = (
            set()
        )  # copies of shards that are done: they run on, and their digests are compared
        self._progress = self._looked = self._idle_since = time.monotonic()

    def run(self, stages: Sequence[Stage], check: Check) -> None:
        """Runs stages to their end; `check` looks at each phase's results and may refuse them."""
        waiting = list(stages)
        try:
            while waiting or self._open:
                running = {stage.name for stage in waiting} | {o.stage.name for o in self._open}
                for stage in [s for s in waiting if not running & set(s.spec.after)]:
                    waiting.remove(stage)
                    self._begin(stage)
                for one in list(self._open):
                    self._next_phase(one, check)
                self._fill()
                if self._flights:
                    self._handle_outcomes(self.engine.wait(min(LOOK, self.patience)))
                    self._poll_records()
        finally:
            for one in self._open:
                one.bar.close()

    def _begin(self, stage: Stage) -> None:
        phases = stage.phases(self.job)
        done = self.job.store.done(stage.name)
        shards = [s for phase in phases for place, s in enumerate(phase) if self.takes(place)]
        self.job.store.log_plan(stage, phases)
        bar: tqdm[Any] = tqdm(
            desc=f"{stage.name:9s}", total=sum(s.size for s in shards), unit=stage.unit,
            initial=sum(s.size for s in shards if s.name in done),
            disable=not self.job.runtime.progress, mininterval=0.5,
        )  # fmt: skip
        self._open.append(_ActiveStage(stage, deque(phases), bar))

    def _next_phase(self, one: _ActiveStage, check: Check) -> None:
        """On to the next phase that lacks shards, once this one has them all."""
        while not one.missing:
            done = self.job.store.done(one.stage.name)
            check(one.stage, done)
            left = [(place, s) for place, s in enumerate(one.phase) if s.name not in done]
            ours = [s for place, s in left if self.takes(place)]
            if ours:  # reported, and not in sight: a network file system shows them later, or they are lost
                self._wait_for_sight(one, ours)
                return
            one.unseen_since = None
            if left:
                say(f"{one.stage.name}: this share is done; the rest of the stage waits for the other shards")
            if left or not one.phases:
                one.bar.close()
                self._open.remove(one)
                return
            one.later = bool(one.phase) or one.later
            one.phase = one.phases.popleft()
            one.rates = []  # another phase's sizes are of another kind
            mine = [s for place, s in enumerate(one.phase) if self.takes(place) and s.name not in done]
            one.todo = deque(sorted(mine, key=lambda s: -s.size))  # the longest first: no long one is left for the end
            one.missing = {s.name for s in mine}

    def _wait_for_sight(self, one: _ActiveStage, shards: list[Shard]) -> None:
        now = time.monotonic()
        one.unseen_since = one.unseen_since or now
        if now - one.unseen_since > STALE:
            one.unseen_since, one.todo = None, deque(shards)
            one.missing = {shard.name for shard in shards}
        time.sleep(0.2)

    def _fill(self) -> None:
        for one in self._open:
            if not one.todo:
                continue
            in_flight = sum(task.stage == one.stage.name for task in self._flights)
            for _ in range(min(len(one.todo), self.engine.capacity(one.stage.name) - in_flight)):
                self._send(one, one.todo.popleft())
        now = time.monotonic()
        if not self._is_idle():
            self._idle_since = now  # what is in flight may be queued still
            return
        for task in self._stragglers(now):
            say(f"{task.stage} {task.shard.name} takes long: it runs a second time beside")
            self._send(self._of(task), task.shard)

    def _send(self, one: _ActiveStage, shard: Shard) -> None:
        attempt = one.attempts.get(shard.name, 0)
        one.attempts[shard.name] = attempt + 1
        task = Task(one.stage.name, shard, attempt, one.later)
        self._flights[task] = _Flight(time.monotonic())
        self.engine.submit(task)

    def _is_idle(self) -> bool:
        return all(len(self._flights) < self.engine.slots(one.stage.name) for one in self._open)

    def _stragglers(self, now: float) -> list[Task]:
        """What takes SLOW times its phase's median, counted from when slots were free, and runs only once."""
        if now - self._idle_since <= SLOW_SECONDS:
            return []
        found = []
        for one in (one for one in self._open if len(one.rates) >= 3):
            usual = statistics.median(one.rates)
            for task, flight in self._flights.items():
                limit = max(SLOW * usual * task.shard.size, SLOW_SECONDS)
                slow = task.stage == one.stage.name and now - max(flight.since, self._idle_since) > limit
                if slow and task not in self._duplicates and not self._twins(task):
                    found.append(task)
        return found

    def _twins(self, task: Task) -> list[Task]:
        """Other attempts at the same shard that are in flight."""
        return [t for t in self._flights if t != task and (t.stage, t.shard) == (task.stage, task.shard)]

    def _of(self, task: Task) -> _ActiveStage:
        return next(one for one in self._open if one.stage.name == task.stage)

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
        one, name = self._of(task), task.shard.name
        if name not in one.missing:
            return
        one.missing.discard(name)
        one.bar.update(task.shard.size)
        if seconds is not None:
            one.rates.append(seconds / max(task.shard.size, 1))
        self._duplicates |= set(self._twins(task))
        self._progress = time.monotonic()

    def _again(self, task: Task, why: str) -> None:
        """Sends a shard again, unless a record says it is done or a twin is still at it."""
        one = self._of(task)
        if self._committed(task):
            self._finished(task)
        elif self._twins(task):
            return
        elif one.attempts[task.shard.name] >= ATTEMPTS:
            raise UsageError(
                f"{task.stage} {task.shard.name} failed {ATTEMPTS} times, last with: {why or 'no word from its worker'}"
                f" (see {self.job.store.root / layout.LOGS}); what is done is kept: run the same command to go on"
            )
        else:
            say(f"{task.stage} {task.shard.name} is sent again: {why}")
            one.todo.appendleft(task.shard)

    def _poll_records(self) -> None:
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
                    self._again(task, f"nothing was done for {self.patience:.0f} s")

    def _abandon(self, task: Task) -> None:
        del self._flights[task]
        self._duplicates.discard(task)
        self.engine.drop(task)

    def _committed(self, task: Task) -> bool:
        return (self.job.store.root / layout.record(self.job.store.run, task.stage, task.shard.name)).exists()


def say(text: str) -> None:
    tqdm.write(text, file=sys.stderr)
