"""Test the scheduler with engines that lose tasks, repeat them or never report them.

The commit records are real; only the engine is scripted.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from pipeline.executors import scheduling
from pipeline.executors.scheduling import Scheduler
from pipeline.executors.worker import Outcome, Task
from pipeline.job import Expected, Shard, Stage
from store import commits
from store.errors import UsageError
from store.publish import Publication

RUN = "m@d"


@dataclass
class Recorded:
    """The part of a job that the scheduler uses."""

    root: Path
    run: str = RUN
    progress: bool = False
    planned: list[str] = field(default_factory=list)

    @property
    def store(self) -> Recorded:
        return self

    runtime = store

    def done(self, stage: str) -> dict[str, commits.Record]:
        return {r.shard: r for r in commits.records(self.root, RUN, stage)}

    def log_plan(self, stage: str, phases: list[int]) -> None:
        self.planned.append(stage)

    def commit(self, task: Task) -> None:
        with Publication(self.root, RUN, task.stage, task.shard.name, "f") as out:
            out.commit()


class Scripted:
    """An engine that treats each task as the script, called with the task, says.

    "well" commits the task and reports it. "lost" does neither. "silent" commits it but never reports it. "dies"
    reports a dead worker, and "wrong" reports bad input.
    """

    def __init__(self, job: Recorded, script: Callable[[Task], str], slots: int = 2) -> None:
        self.job, self.script, self.running = job, script, slots
        self.sent: list[Task] = []
        self.dropped: list[Task] = []
        self.most = 0
        self._now: dict[Task, str] = {}

    def slots(self, stage: str) -> int:
        return self.running

    def capacity(self, stage: str) -> int:
        return self.running

    def submit(self, task: Task) -> None:
        self.sent.append(task)
        self._now[task] = self.script(task)
        self.most = max(self.most, len(self._now))

    def wait(self, seconds: float) -> list[Outcome]:
        found = []
        for task, what in list(self._now.items()):
            if what == "silent":
                self.job.commit(task)
                self._now[task] = "lost"
            elif what == "dies":
                found.append(Outcome(task, error="its worker died"))
            elif what == "wrong":
                found.append(Outcome(task, error="no such picture", fatal=True))
            elif what == "well":
                self.job.commit(task)
                found.append(Outcome(task, 0.01))
        for outcome in found:
            del self._now[outcome.task]
        if not found:
            time.sleep(min(seconds, 0.01))
        return found

    def drop(self, task: Task) -> None:
        self.dropped.append(task)
        self._now.pop(task, None)

    def close(self) -> None: ...


def stage(name: str, *phases: int) -> Stage:
    made = [[Shard(f"{p}-{i}") for i in range(count)] for p, count in enumerate(phases)]
    expected = Expected(sum(phases))
    return Stage(name, "img", lambda job: made, lambda *_: pytest.fail("only workers run shards"), lambda job: expected)


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recorded:
    monkeypatch.setattr(scheduling, "LOOK", 0.01)
    monkeypatch.setattr(scheduling, "GRACE", 0.05)
    return Recorded(tmp_path)


def run(job: Recorded, engine: Scripted, *stages: Stage, patience: float = 60.0, **more: Any) -> None:
    Scheduler(job, engine, patience=patience, **more).run(stages, lambda stage, done: None)  # type: ignore[arg-type]


def names(tasks: list[Task]) -> list[str]:
    return [f"{task.stage} {task.shard.name}" for task in tasks]


def test_every_shard_once_and_never_more_than_the_engine_takes(job: Recorded) -> None:
    engine = Scripted(job, lambda task: "well")
    run(job, engine, stage("index", 1), stage("calibrate", 1), stage("scan", 9), stage("fold", 4, 1))
    assert len(engine.sent) == len(set(names(engine.sent))) == 16
    assert engine.most == engine.running


def test_a_phase_waits_for_the_one_before_and_independent_stages_for_nobody(job: Recorded) -> None:
    open_: list[str] = []

    def script(task: Task) -> str:
        open_.append(task.stage)
        if task.shard.name.startswith("1"):
            assert len(job.store.done(task.stage)) == 3
        return "well"

    engine = Scripted(job, script)
    run(job, engine, stage("fold", 3, 1), stage("examples", 3, 1), stage("visualize", 3, 1))
    assert open_[:4] == ["fold"] * 4
    assert open_[4:] != sorted(open_[4:]), "examples and visualizations run beside each other"


def test_what_is_committed_is_done_whatever_the_engine_says(job: Recorded) -> None:
    engine = Scripted(job, lambda task: "silent" if task.shard.name == "0-1" else "well")
    run(job, engine, stage("index", 4))
    assert len(engine.sent) == 4, "nothing is sent again"
    assert names(engine.dropped) == ["index 0-1"]


def test_what_is_lost_in_silence_is_sent_again(job: Recorded) -> None:
    engine = Scripted(job, lambda task: "lost" if task.shard.name == "0-1" and task.attempt == 0 else "well")
    run(job, engine, stage("index", 4), patience=0.2)
    assert sorted(names(engine.sent)).count("index 0-1") == 2
    assert len(engine.sent) == 5


def test_a_dead_worker_costs_its_shard_alone(job: Recorded) -> None:
    engine = Scripted(job, lambda task: "dies" if task.shard.name == "0-2" and task.attempt < 2 else "well")
    run(job, engine, stage("index", 4))
    assert names(engine.sent).count("index 0-2") == 3
    assert len(engine.sent) == 6


def test_a_shard_that_always_dies_ends_the_run(job: Recorded) -> None:
    engine = Scripted(job, lambda task: "dies" if task.shard.name == "0-2" else "well")
    with pytest.raises(UsageError, match=r"index 0-2 failed 4 times, last with: its worker died"):
        run(job, engine, stage("index", 4))
    assert len(engine.sent) == 3 + scheduling.ATTEMPTS


def test_wrong_input_ends_the_run_at_once(job: Recorded) -> None:
    engine = Scripted(job, lambda task: "wrong" if task.shard.name == "0-0" else "well")
    with pytest.raises(UsageError, match="no such picture"):
        run(job, engine, stage("index", 1))
    assert len(engine.sent) == 1


def test_a_straggler_runs_twice_and_the_first_wins(job: Recorded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduling, "SLOW_SECONDS", 0.1)
    engine = Scripted(job, lambda task: "lost" if task.shard.name == "0-0" and task.attempt == 0 else "well")
    run(job, engine, stage("index", 6))
    assert names(engine.sent).count("index 0-0") == 2
    assert len(engine.sent) == 7
    assert not engine.dropped, "the straggler may end: its digests are compared then"


def test_a_share_leaves_the_rest_to_others(job: Recorded, capfd: pytest.CaptureFixture[str]) -> None:
    engine = Scripted(job, lambda task: "well")
    run(job, engine, stage("scan", 5), takes=lambda place: place % 2 == 1)
    assert names(engine.sent) == ["scan 0-1", "scan 0-3"]
    assert "waits for the other shards" in capfd.readouterr().err
