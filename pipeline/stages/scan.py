"""Stage `scan`: one forward pass over every picture, all statistics of all units into partials."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pipeline.data.loading import Batch
from pipeline.job import Job, Shard, Stage
from pipeline.reduce.measured import Measured
from pipeline.stages.packing import packed
from pipeline.statistics import moments
from pipeline.statistics.moments import Pair
from store import hdf5, layout
from store.hdf5 import Array
from store.publish import Record

PREDICTIONS = 5


def _phases(job: Job) -> list[list[Shard]]:
    size, total = job.config.scan.shard_size, len(job.readable)
    cuts = [(a, min(a + size, total)) for a in range(0, total, size)]
    return [[Shard(f"{i:05d}", a, b, b - a) for i, (a, b) in enumerate(cuts)]]


@dataclass
class _Rows:
    """A shard's results as they come in; a batch is one entry of each list."""

    units: int
    ids: list[NDArray[np.int64]] = field(default_factory=list)
    columns: dict[str, list[NDArray[np.generic]]] = field(default_factory=dict)
    bad: list[tuple[int, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.total, self.square = moments.zero(self.units), moments.zero(self.units)
        self.active = np.zeros(self.units, np.int64)
        self.minimum = np.full(self.units, np.inf, np.float32)

    def add(self, batch: Batch, found: Measured) -> None:
        n = len(batch.ids)
        self.ids.append(batch.ids)
        for name in ("max", "argmax", "mean", "min", "argmin"):
            self.columns.setdefault(name, []).append(getattr(found, name)[:n])
        if found.logits is not None:
            index, probability = top_predictions(found.logits[:n])
            self.columns.setdefault("top5_class", []).append(index)
            self.columns.setdefault("top5_probability", []).append(probability)
        self.total = moments.add_rows(self.total, found.sum[:n])
        self.square = moments.add_rows(self.square, found.square[:n])
        self.active += found.active[:n].sum(0)
        self.minimum = np.minimum(self.minimum, found.min[:n].min(0))

    def column(self, name: str) -> NDArray[np.generic]:
        return np.concatenate(self.columns[name])


def _run(job: Job, shard: Shard, advance: Callable[[int], None]) -> Record:
    rows = _Rows(int(job.units.offsets[-1]))
    for batch, found in job.measured(job.readable[shard.first : shard.last]):
        rows.bad += batch.bad
        if found is not None:
            rows.add(batch, found)
        advance(len(batch.ids) + len(batch.bad))
    with job.publication("scan", shard.name) as out:
        hdf5.write(out.path(layout.partial(job.run, "scan", f"{shard.name}.h5")), _arrays(job, rows))
        return out.commit({"rejected": [[i, reason] for i, reason in rows.bad]})


def _arrays(job: Job, rows: _Rows) -> dict[str, Array]:
    arrays = {"ids": Array(np.concatenate([np.zeros(0, np.int64), *rows.ids]))}
    for name, pair in (("total", rows.total), ("square", rows.square)):
        arrays[name] = Array(_stack(pair))
    arrays |= {"active": Array(rows.active), "minimum": Array(rows.minimum)}
    if not rows.ids:
        return arrays
    for name in ("top5_class", "top5_probability"):
        if name in rows.columns:
            arrays[name] = Array(rows.column(name))
    columns = {name: rows.column(name) for name in ("max", "argmax", "mean", "min", "argmin")}
    for place, layer in enumerate(job.layers):
        units = job.units.slice(place)
        small = layer.height * layer.width <= np.iinfo(np.uint16).max
        for name in ("max", "argmax", "mean", *(("min", "argmin") if layer.signed else ())):
            data = columns[name][:, units]
            if name.startswith("arg") and small:
                data = data.astype(np.uint16)
            arrays |= packed(f"{layer.name}/{name}", data)
    return arrays


def _stack(pair: Pair) -> NDArray[np.float64]:
    return np.stack([pair.high, pair.low])


def top_predictions(logits: NDArray[np.float32]) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Classes and softmax probabilities of the likeliest five: int32 and float32 [n, 5]; ties by class."""
    exact = logits.astype(np.float64)
    powers = np.exp(exact - exact.max(1, keepdims=True))
    probabilities = powers / powers.sum(1, keepdims=True)
    order = np.argsort(-probabilities, axis=1, kind="stable")[:, :PREDICTIONS]
    return order.astype(np.int32), np.take_along_axis(probabilities, order, 1).astype(np.float32)


STAGE = Stage("scan", "img", _phases, _run)
