"""Stage `calibrate`: measure a sample of the images before hours are spent on all of them.

If the dataset is no larger than the sample, nothing is measured here: the scan is as quick.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from pipeline.job import Expected, Job, Shard, Stage, Work
from pipeline.scan.batch_statistics import check_sign
from store.commits import Record
from store.errors import UsageError

MOST_DEAD = 0.98  # if a larger share of units is constant on the sample, weights or preprocessing are wrong


def _phases(job: Job) -> list[list[Shard]]:
    sample = job.spec.config.calibrate.images
    return [[Shard("calibrate", 0, sample, sample if len(job.dataset.readable) > sample else 1)]]


def _run(job: Job, shard: Shard, advance: Callable[[int], None]) -> Record:
    facts: dict[str, object] = {"sample": 0}
    if len(job.dataset.readable) <= shard.last:
        advance(1)
    else:
        facts = _look(job, shard.last, advance)
    with job.store.publication("calibrate", shard.name) as out:
        return out.commit(facts)


def _look(job: Job, sample: int, advance: Callable[[int], None]) -> dict[str, object]:
    rng = np.random.default_rng(job.spec.config.calibrate.seed)
    ids = np.sort(rng.choice(job.dataset.readable, sample, replace=False))
    highest = np.full(int(job.spec.units.offsets[-1]), -np.inf, np.float32)
    lowest = np.full_like(highest, np.inf)
    fired, seen = np.zeros(len(highest), np.int64), 0
    for batch, statistics in job.runtime.measured(ids):
        advance(len(batch.ids) + len(batch.bad))
        if statistics is None:
            continue
        rows = slice(0, len(batch.ids))
        highest, lowest = (
            np.maximum(highest, statistics.max[rows].max(0)),
            np.minimum(lowest, statistics.min[rows].min(0)),
        )
        fired, seen = fired + (statistics.max[rows] > 0).sum(0), seen + len(batch.ids)
    for index, layer in enumerate(job.spec.layers):
        check_sign(layer, float(lowest[job.spec.units.slice(index)].min()))
    silent = float((highest == lowest).mean())
    if silent > MOST_DEAD:
        raise UsageError(
            f"{silent:.0%} of the units of {job.spec.model.name} are constant on {seen} pictures: "
            "check [model] weights and the preprocessing before scanning all of them"
        )
    return {"sample": seen, "share_firing": round(float(fired.sum() / max(seen, 1) / len(highest)), 6)}


def _work(job: Job) -> Work:
    sample = job.spec.config.calibrate.images
    return Work(images=sample if len(job.dataset.entries) > sample else 0)


STAGE = Stage("calibrate", "img", _phases, _run, lambda _: Expected(1), _work)
