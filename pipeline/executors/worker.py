"""Running one shard where it was sent, with a log of where its time went: the same for every engine."""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.config import Config
from pipeline.executors.readiness import wait_for_inputs
from pipeline.job import Job, Shard, Stage
from pipeline.runtime.devices import set_up
from pipeline.runtime.timing import counting
from pipeline.stages import stage_named
from store.errors import UsageError
from store.publish import DisagreementError


@dataclass(frozen=True)
class WorkerSpec:
    """What a worker is begun with. `folder` is where the command was given: a config's paths are relative to it."""

    config: Config
    root: Path
    folder: str
    device: str
    fingerprint: str
    where: dict[str, str] = field(default_factory=dict)  # said in every line of the log


@dataclass(frozen=True)
class Task:
    """One attempt at a shard; `attempt` counts from 0 and tells a straggler's twin from the straggler; `later`: of a
    later phase, which reads the phases before."""

    stage: str
    shard: Shard
    attempt: int = 0
    later: bool = True


@dataclass(frozen=True)
class Outcome:
    """`error` is empty where the shard is committed; `fatal`: trying again would fail again."""

    task: Task
    seconds: float = 0.0
    error: str = ""
    fatal: bool = False


def given(job: Job, **where: str) -> WorkerSpec:
    return WorkerSpec(
        job.spec.config, job.store.root.absolute(), os.getcwd(), job.spec.device, job.spec.fingerprint, where
    )


def begin(given: WorkerSpec) -> Job:
    """A worker's job. Raises UsageError where this machine would compute something else than the one that asked."""
    try:
        os.chdir(given.folder)
    except OSError as error:
        raise UsageError(
            f"{given.folder} cannot be entered on {os.uname().nodename} ({error.strerror}): give the command "
            "in a folder that every node sees, or name config and pictures by paths that every node sees"
        ) from error
    set_up()
    job = Job(given.config, given.root, progress=False, device=given.device, where=given.where)
    if job.spec.fingerprint != given.fingerprint:
        raise UsageError(
            f"{os.uname().nodename} would compute another run than the machine that asked: "
            "install the same versions of torch and unitscope, and the same weights, on every node"
        )
    return job


def perform(job: Job, task: Task) -> Outcome:
    """Runs a task and says how it went: what goes wrong here is for the scheduler to judge."""
    started = time.perf_counter()
    try:
        stage = stage_named(task.stage)
        wait_for_inputs(job, stage, task.shard, task.later)
        run_shard(job, stage, task.shard)
    except UsageError as error:
        return Outcome(task, time.perf_counter() - started, str(error), fatal=True)
    except Exception as error:  # of any kind: another worker may have better luck
        return Outcome(task, time.perf_counter() - started, f"{type(error).__name__}: {error}")
    return Outcome(task, time.perf_counter() - started)


def run_shard(job: Job, stage: Stage, shard: Shard, advance: Callable[[int], None] = lambda _: None) -> None:
    """Runs one shard. Another process may finish it, or the whole stage, and take the partials away meanwhile: then it
    is done. Two that finished and disagree are an error."""
    names = {"run": job.store.run, "stage": stage.name, "shard": shard.name}
    job.store.log.write("begin", **names)
    started = time.perf_counter()
    with counting() as phases:
        try:
            stage.run(job, shard, advance)
            event, more = "done", {}
        except (UsageError, OSError) as error:
            if isinstance(error, DisagreementError) or not _is_done(job, stage, shard):
                job.store.log.write("failed", **names, error=str(error))
                raise
            event, more = "overtaken", {"error": str(error)}
        except Exception:
            job.store.log.write("failed", **names, error=traceback.format_exc())
            raise
    seconds = time.perf_counter() - started
    facts = {"seconds": round(seconds, 4), "phases": phases.rounded(), "size": shard.size, "unit": stage.unit}
    if stage.unit == "img":
        facts["images_per_second"] = round(shard.size / max(seconds, 1e-9), 2)
    job.store.log.write(event, **names, device=job.spec.device, **facts, **more)


def _is_done(job: Job, stage: Stage, shard: Shard) -> bool:
    return job.store.record(stage.name, shard.name) is not None or job.store.record(stage.name, "finish") is not None
