"""Stage `scan`: run one forward pass over every picture and write the statistics of all units to partials."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from pipeline.data.indexing import refuse_too_many
from pipeline.data.loading import Batch
from pipeline.job import Expected, Job, Shard, Stage, Work
from pipeline.scan.batch_statistics import BatchStatistics, UnitIndex
from pipeline.stages.work_sizes import channels_together
from pipeline.statistics import moments
from store import hdf5, layout
from store.commits import Record
from store.hdf5 import Array

PREDICTIONS = 5
CHUNK = 1 << 18  # the most numbers in a chunk, which holds all rows of some channels
AT_ONCE = 2  # shards: one is written while the network runs on the other


def _phases(job: Job) -> list[list[Shard]]:
    size, total = job.spec.config.scan.shard_size, len(job.dataset.readable)
    cuts = [(a, min(a + size, total)) for a in range(0, total, size)]
    return [[Shard(f"{i:05d}", a, b, b - a) for i, (a, b) in enumerate(cuts)]]


class Rows:
    """A shard's results, collected batch by batch: one row per image, and sums over images."""

    def __init__(self, units: UnitIndex, images: int) -> None:
        count = int(units.offsets[-1])
        self.signed = signed_units(units)
        self.used = 0
        self.ids = np.empty(images, np.int64)
        position_type = np.uint16 if all(x.height * x.width <= 1 << 16 for x in units.layers) else np.int32
        self.max, self.mean = (np.empty((images, count), np.float32) for _ in range(2))
        self.argmax = np.empty((images, count), position_type)
        self.min = np.empty((images, len(self.signed)), np.float32)
        self.argmin = np.empty((images, len(self.signed)), position_type)
        self.predictions: list[tuple[NDArray[np.int32], NDArray[np.float32]]] = []
        self.bad: list[tuple[int, str]] = []
        self.total, self.square = moments.zero(count), moments.zero(count)
        self.active = np.zeros(count, np.int64)
        self.minimum = np.full(count, np.inf, np.float32)

    def add(self, batch: Batch, statistics: BatchStatistics) -> None:
        """Append the images of a batch. Rows of `statistics` beyond them are padding."""
        n = len(batch.ids)
        rows = slice(self.used, self.used + n)
        self.used += n
        self.ids[rows] = batch.ids
        self.max[rows], self.mean[rows], self.argmax[rows] = (
            statistics.max[:n],
            statistics.mean[:n],
            statistics.argmax[:n],
        )
        self.min[rows], self.argmin[rows] = statistics.min[:n, self.signed], statistics.argmin[:n, self.signed]
        if statistics.logits is not None:
            self.predictions.append(top_predictions(statistics.logits[:n]))
        moments.add_rows_into(self.total, statistics.sum[:n])
        moments.add_rows_into(self.square, statistics.square[:n])
        self.active += statistics.active[:n].sum(0, dtype=np.int64)
        np.minimum(self.minimum, statistics.min[:n].min(0), out=self.minimum)

    def arrays(self, together: int) -> dict[str, Array]:
        """Return the arrays of a partial.

        Statistics are [images, units]; `min` and `argmin` have only the units of signed layers. `total` and `square`
        are [2, units], the high and low parts of the sums; `active` and `minimum` are [units]. A chunk has all rows of
        the channels that the fold reads `together`, or of fewer channels.
        """
        arrays = {"ids": Array(self.ids[: self.used])}
        for name, pair in (("total", self.total), ("square", self.square)):
            arrays[name] = Array(np.stack([pair.high, pair.low]))
        arrays |= {"active": Array(self.active), "minimum": Array(self.minimum)}
        if self.predictions:
            for name, column in zip(
                ("top5_class", "top5_probability"), zip(*self.predictions, strict=True), strict=True
            ):
                arrays[name] = Array(np.concatenate(column))
        rows = max(self.used, 1)
        chunk = (rows, max(min(CHUNK // rows, together), 1))
        arrays |= {n: Array(getattr(self, n)[: self.used], chunk) for n in ("max", "mean", "argmax", "min", "argmin")}
        return arrays


def signed_units(units: UnitIndex) -> NDArray[np.int64]:
    """Return the indices of the units whose layers can be negative, in rising order: int64."""
    indices = [np.arange(*units.slice(i).indices(1 << 62)[:2]) for i, x in enumerate(units.layers) if x.signed]
    return np.concatenate([np.zeros(0, np.int64), *indices])


def _run(job: Job, shard: Shard, advance: Callable[[int], None]) -> Record:
    rows = Rows(job.spec.units, shard.size)
    for batch, statistics in job.runtime.measured(job.dataset.readable[shard.first : shard.last]):
        rows.bad += batch.bad
        if statistics is not None:
            rows.add(batch, statistics)
        advance(len(batch.ids) + len(batch.bad))
    with job.store.publication("scan", shard.name) as out:
        hdf5.write(
            out.path(layout.partial(job.store.run, "scan", f"{shard.name}.h5")),
            rows.arrays(channels_together(len(job.dataset.images))),
        )
        return out.commit({"rejected": [[i, reason] for i, reason in rows.bad]})


def top_predictions(logits: NDArray[np.float32]) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Return the five most probable classes and their softmax probabilities: int32 and float32 [n, 5].

    Of equally probable classes, the lower number comes first.
    """
    exact = logits.astype(np.float64)
    powers = np.exp(exact - exact.max(1, keepdims=True))
    probabilities = powers / powers.sum(1, keepdims=True)
    order = np.argsort(-probabilities, axis=1, kind="stable")[:, :PREDICTIONS]
    return order.astype(np.int32), np.take_along_axis(probabilities, order, 1).astype(np.float32)


def _expected(job: Job) -> Expected:
    return Expected(-(-len(job.dataset.entries) // job.spec.config.scan.shard_size), exact=False)


def _refuse_bad(job: Job, done: Mapping[str, Record]) -> None:
    """Refuse the scan if more images could not be decoded than the config allows."""
    reasons = [(int(i), str(r)) for record in done.values() for i, r in record.facts.get("rejected", [])]
    bad = [(job.dataset.path_of(i), reason) for i, reason in sorted(reasons)]
    total = len(job.dataset.images)
    known = [("", "")] * (total - len(job.dataset.readable))
    refuse_too_many([*bad, *known], total, job.spec.config.dataset.max_bad_fraction)


STAGE = Stage(
    "scan", "img", _phases, _run, _expected, lambda job: Work(images=len(job.dataset.entries)),
    at_once=lambda _: AT_ONCE, check=_refuse_bad,
)  # fmt: skip
