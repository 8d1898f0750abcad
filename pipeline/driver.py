"""Run stages. Shards that are committed are skipped; the rest is computed in this process or on an engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tqdm import tqdm

from pipeline.executors import worker
from pipeline.executors.engine import Engine
from pipeline.executors.processes import Processes
from pipeline.executors.readiness import is_complete, require_inputs
from pipeline.executors.scheduling import PATIENCE, Scheduler
from pipeline.job import Job, Shard, Stage
from pipeline.runtime.devices import set_up
from pipeline.runtime.ordered_map import ordered_map
from pipeline.runtime.progress import say
from pipeline.stages import STAGES, stage_named
from store import housekeeping, publish


@dataclass(frozen=True)
class Slice:
    """The option `--shard I/N`: the shards I, I+N, I+2N, ... of each phase of a stage."""

    index: int
    of: int

    def takes(self, position: int) -> bool:
        """Return whether the slice contains the shard at a position in its phase."""
        return position % self.of == self.index


WHOLE = Slice(0, 1)


def run(
    job: Job,
    wanted: Sequence[str] = (),
    part: Slice = WHOLE,
    engine: Callable[[], Engine] | None = None,
    patience: float = PATIENCE,
) -> None:
    """Run the wanted stages in order, or all if none is named.

    `engine` makes the engine that shards run on. If it is None, they run in this process, or in worker processes if the
    config asks for several. `patience` is in seconds: see `Scheduler`. Raises UsageError if a stage that a wanted one
    reads is neither wanted nor complete.
    """
    publish.check_path(job.store.root)  # before the network is opened
    set_up()
    _ = job.spec.visualized  # reports a pattern that matches nothing now, not after the scan
    publish.ensure_store(job.store.root)
    housekeeping.remove_stale_temporaries(job.store.root)
    stages = [stage for stage in STAGES if not wanted or stage.name in wanted]
    if job.spec.no_predictions and any(stage.name == "scan" for stage in stages):
        say(f"no predictions: {job.spec.no_predictions}")
    if wanted:
        for stage in stages:
            require_inputs(job, stage, [s.name for s in stages])
    if engine is None and job.spec.config.compute.workers > 1:
        engine = _processes(job)
    if engine is None:
        for stage in stages:
            run_stage(job, stage, part)
    elif missing := [stage for stage in stages if not is_complete(job, stage)]:
        _run_on(engine(), job, missing, part, patience)
    for stage in STAGES:
        _drop_partials(job, stage)
    housekeeping.remove_orphans(job.store.root, job.store.run)
    publish.write_manifest(job.store.root)


def _processes(job: Job) -> Callable[[], Engine]:
    return lambda: Processes(
        worker.given(job), job.spec.config.compute.workers, lambda stage: stage_named(stage).at_once(job)
    )


def _run_on(engine: Engine, job: Job, stages: Sequence[Stage], part: Slice, patience: float) -> None:
    try:
        Scheduler(job, engine, part.takes, patience).run(stages, lambda stage, done: stage.check(job, done))
    finally:
        engine.close()


def run_stage(job: Job, stage: Stage, part: Slice = WHOLE) -> None:
    """Run a slice of one stage in this process, up to the first phase that needs shards outside the slice."""
    done = job.store.done(stage.name)
    phases = stage.phases(job)
    job.store.log_plan(stage.name, [len(phase) for phase in phases])
    for phase in phases:
        own = [shard for position, shard in enumerate(phase) if part.takes(position)]
        missing = [shard for shard in own if shard.name not in done]
        _compute(job, stage, missing, sum(s.size for s in own))
        done = job.store.done(stage.name)
        stage.check(job, done)
        if any(shard.name not in done for shard in phase):
            say(f"{stage.name}: this share is done; the rest of the stage waits for the other shards")
            return


def missing_shards(job: Job, stage: Stage) -> list[Shard]:
    """Return the shards of a stage that are not committed."""
    done = job.store.done(stage.name)
    return [shard for phase in stage.phases(job) for shard in phase if shard.name not in done]


def _compute(job: Job, stage: Stage, missing: Sequence[Shard], total: int) -> None:
    if not missing:
        return
    size = sum(shard.size for shard in missing)
    with tqdm(
        desc=f"{stage.name:9s}", total=total, initial=total - size, unit=stage.unit, disable=not job.runtime.progress,
        mininterval=0.5, smoothing=0.1,
    ) as bar:  # fmt: skip

        def advance(count: int) -> None:
            bar.update(count)

        for _ in ordered_map(lambda shard: worker.run_shard(job, stage, shard, advance), missing, stage.at_once(job)):
            pass


def _drop_partials(job: Job, stage: Stage) -> None:
    """Remove the partials of a stage if the shard that reads them last is committed."""
    if stage.spec.consumer and job.store.record(*stage.spec.consumer):
        housekeeping.remove_partials(job.store.root, job.store.run, [stage.name])
