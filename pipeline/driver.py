"""Runs stages: what is committed is skipped, the rest is computed here or in worker processes."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from pipeline.config import Config
from pipeline.data.indexing import refuse_too_many
from pipeline.job import Job, Shard, Stage
from pipeline.machine import in_order, set_up
from pipeline.stages import STAGES
from store import publish, verify
from store.errors import UsageError


@dataclass(frozen=True)
class Slice:
    """`--shard I/N`: of one stage's shards s those with s mod N = I."""

    index: int
    of: int

    def takes(self, place: int) -> bool:
        return place % self.of == self.index


WHOLE = Slice(0, 1)


def run(job: Job, wanted: Sequence[str] = (), part: Slice = WHOLE) -> None:
    """Runs the wanted stages (all, where none is named) in order. Raises UsageError where an earlier one is missing."""
    set_up()
    _ = job.visualized  # a pattern that matches nothing is said now, not after the scan
    publish.ensure_store(job.root)
    publish.remove_stale_temporaries(job.root)
    for stage in STAGES:
        if wanted and stage.name not in wanted:
            if _is_before_last(stage.name, wanted):
                _require(job, stage)
            continue
        run_stage(job, stage, part)
    for stage in STAGES:
        _drop_partials(job, stage.name)
    publish.write_manifest(job.root)


def run_stage(job: Job, stage: Stage, part: Slice = WHOLE) -> None:
    done = job.done(stage.name)
    phases = stage.phases(job)
    for phase in phases:
        mine = [shard for place, shard in enumerate(phase) if part.takes(place)]
        missing = [shard for shard in mine if shard.name not in done]
        _compute(job, stage, missing, sum(s.size for s in mine))
        done = job.done(stage.name)
        _refuse_bad(job, stage, done)
        if any(shard.name not in done for shard in phase):
            _say(f"{stage.name}: this share is done; the rest of the stage waits for the other shards")
            return


def missing_shards(job: Job, stage: Stage) -> list[Shard]:
    done = job.done(stage.name)
    return [shard for phase in stage.phases(job) for shard in phase if shard.name not in done]


def _is_before_last(name: str, wanted: Sequence[str]) -> bool:
    order = [stage.name for stage in STAGES]
    return order.index(name) < max(order.index(w) for w in wanted)


def _require(job: Job, stage: Stage) -> None:
    missing = missing_shards(job, stage)
    if missing:
        raise UsageError(
            f"stage {stage.name} of {job.run} is not finished ({len(missing)} shards are missing): "
            f"run it first, with --stage {stage.name} or without --stage"
        )


def _compute(job: Job, stage: Stage, shards: Sequence[Shard], total: int) -> None:
    if not shards:
        return
    size = sum(shard.size for shard in shards)
    with tqdm(
        desc=f"{stage.name:9s}", total=total, initial=total - size, unit=stage.unit, disable=not job.progress,
        mininterval=0.5, smoothing=0.1,
    ) as bar:  # fmt: skip

        def advance(count: int) -> None:
            bar.update(count)

        workers = min(job.config.compute.workers, len(shards))
        if workers <= 1:
            for _ in in_order(lambda shard: _run_shard(job, stage, shard, advance), shards, stage.at_once(job)):
                pass
        else:
            _in_processes(job, stage, shards, workers, advance)


def _in_processes(
    job: Job, stage: Stage, shards: Sequence[Shard], workers: int, advance: Callable[[int], None]
) -> None:
    context = multiprocessing.get_context("spawn")
    given = (job.config, job.root, stage.name)
    with ProcessPoolExecutor(workers, context, _begin, given) as pool:
        waiting = {pool.submit(_work, shard): shard for shard in shards}
        try:
            while waiting:
                finished, _ = wait(waiting, return_when=FIRST_COMPLETED)
                for future in finished:
                    future.result()
                    advance(waiting.pop(future).size)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


_worker: tuple[Job, Stage] | None = None


def _begin(config: Config, root: Path, stage: str) -> None:
    global _worker
    job = Job(config, root, progress=False)
    set_up()
    _worker = job, next(s for s in STAGES if s.name == stage)


def _work(shard: Shard) -> None:
    if _worker is None:
        raise RuntimeError("the worker was not begun")
    job, stage = _worker
    _run_shard(job, stage, shard, lambda _: None)


def _run_shard(job: Job, stage: Stage, shard: Shard, advance: Callable[[int], None]) -> None:
    """Another process may finish this shard, or the whole stage, and take the partials away meanwhile."""
    try:
        stage.run(job, shard, advance)
    except (UsageError, OSError):
        if job.record(stage.name, shard.name) is None and job.record(stage.name, "finish") is None:
            raise


def _refuse_bad(job: Job, stage: Stage, done: dict[str, publish.Record]) -> None:
    if stage.name != "scan":
        return
    reasons = [(int(i), str(r)) for record in done.values() for i, r in record.facts["rejected"]]
    bad = [(job.path_of(i), reason) for i, reason in sorted(reasons)]
    total = len(job.images)
    known = [("", "")] * (total - len(job.readable))
    refuse_too_many([*bad, *known], total, job.config.dataset.max_bad_fraction)


def _drop_partials(job: Job, stage: str) -> None:
    consumer = verify.CONSUMERS.get(stage)
    if consumer and job.record(*consumer):
        publish.remove_partials(job.root, job.run, [stage])


def _say(text: str) -> None:
    tqdm.write(text, file=sys.stderr)
