"""Run one shard in a worker, and log where its time went. Every engine uses this."""

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
from pipeline.runtime.processor import processor_kind
from pipeline.runtime.timing import counting
from pipeline.stages import stage_named
from store.errors import UsageError
from store.publish import DisagreementError


@dataclass(frozen=True)
class WorkerSpec:
    """What a worker needs to make its job.

    `root` is the store. `folder` is the working directory of the command, to which the config's paths are relative.
    """

    config: Config
    root: Path
    folder: str
    device: str
    fingerprint: str
    where: dict[str, str] = field(default_factory=dict)  # facts for every line of the log


@dataclass(frozen=True)
class Task:
    """One attempt at a shard.

    `attempt` counts from 0 and tells the second copy of a straggler from the first. `later` says whether the shard is
    of a later phase of its stage, which reads the phases before.
    """

    stage: str
    shard: Shard
    attempt: int = 0
    later: bool = True


@dataclass(frozen=True)
class Outcome:
    """How a task ended.

    `error` is empty if the shard is committed. `fatal` says that another attempt would fail too. `seconds` is the time
    that the task took.
    """

    task: Task
    seconds: float = 0.0
    error: str = ""
    fatal: bool = False


def given(job: Job, **where: str) -> WorkerSpec:
    """Return the specification of workers that compute this job; `where` holds facts for their log lines."""
    return WorkerSpec(
        job.spec.config, job.store.root.absolute(), os.getcwd(), job.spec.device, job.spec.fingerprint, where
    )


def begin(given: WorkerSpec) -> Job:
    """Make a worker's job. Raises UsageError if this machine would not compute the same run as the one that asked."""
    try:
        os.chdir(given.folder)
    except OSError as error:
        raise UsageError(
            f"{given.folder} cannot be entered on {os.uname().nodename} ({error.strerror}): run the command "
            "in a folder that every node sees"
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
    """Run a task and return its outcome. Errors are returned rather than raised: the scheduler decides what follows."""
    started = time.perf_counter()
    try:
        stage = stage_named(task.stage)
        wait_for_inputs(job, stage, task.shard, task.later)
        run_shard(job, stage, task.shard)
    except UsageError as error:
        return Outcome(task, time.perf_counter() - started, str(error), fatal=True)
    except Exception as error:  # of any kind: an attempt on another worker may succeed
        return Outcome(task, time.perf_counter() - started, f"{type(error).__name__}: {error}")
    return Outcome(task, time.perf_counter() - started)


def run_shard(job: Job, stage: Stage, shard: Shard, advance: Callable[[int], None] = lambda _: None) -> None:
    """Run one shard and log it.

    Meanwhile another process may commit the shard, or finish the whole stage and remove the partials that this one
    reads. An error is then ignored, since the shard is done. Raises DisagreementError if both computed the shard and
    their results differ.
    """
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
    where = {"device": job.spec.device, "processor": processor_kind()}
    job.store.log.write(event, **names, **where, **facts, **more)


def _is_done(job: Job, stage: Stage, shard: Shard) -> bool:
    return job.store.record(stage.name, shard.name) is not None or job.store.record(stage.name, "finish") is not None
