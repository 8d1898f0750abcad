"""Stage `connections`: for each unit, which units feed it and how strongly, by the weights between them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.explain.connections import Wiring
from pipeline.graph import Layer
from pipeline.job import Expected, Job, Shard, Stage
from pipeline.runtime.timing import phase
from store import layout, parquet, schema
from store.commits import Record

_UNITS = 2048  # in a shard, or more where its last layer has more


def _layers(job: Job) -> tuple[Layer, ...]:
    return job.spec.chosen("connections", job.spec.config.connections.layers)


def _phases(job: Job) -> list[list[Shard]]:
    shards: list[Shard] = []
    first, units = 0, 0
    layers = _layers(job)
    for last, layer in enumerate(layers, 1):
        units += layer.channels
        if units >= _UNITS or last == len(layers):
            shards.append(Shard(f"{len(shards):04d}", first, last, units))
            first, units = last, 0
    return [shards, [Shard("finish")]]


def _run(job: Job, shard: Shard, advance: Callable[[int], None]) -> Record:
    if shard.name == "finish":
        record = _finish(job, shard)
        advance(1)
        return record
    wiring, spread = _wiring(job), _spreads(job)
    tables = []
    for layer in _layers(job)[shard.first : shard.last]:
        with phase("forward"):
            tables.append(_inputs(job, wiring, layer, spread))
        advance(layer.channels)
    with job.store.publication("connections", shard.name) as out:
        merged = pa.concat_tables(tables).unify_dictionaries()
        parquet.write(out.path(_partial(job, shard.name)), schema.CONNECTIONS, merged)
        return out.commit()


def _partial(job: Job, shard: str) -> str:
    return layout.partial(job.store.run, "connections", f"{shard}.parquet")


_made: dict[tuple[Path, str], Wiring] = {}  # by store and fingerprint: every shard needs it


def _wiring(job: Job) -> Wiring:
    key = (job.store.root, job.spec.fingerprint)
    if key not in _made:
        _made.clear()
        _made[key] = Wiring(job.spec.model, job.spec.layers)
    return _made[key]


def _spreads(job: Job) -> dict[str, NDArray[np.float64]]:
    """Return the standard deviation over positions of each layer's units, by the layer's name."""
    table = parquet.read(job.store.root / layout.table(job.store.run, "units"), ["layer", "variance"])
    variance = table["variance"].to_numpy()
    return {layer.name: np.sqrt(variance[job.spec.units.slice(i)]) for i, layer in enumerate(job.spec.layers)}


def _inputs(job: Job, wiring: Wiring, layer: Layer, spread: dict[str, NDArray[np.float64]]) -> pa.Table:
    """Return the rows of one layer's units."""
    connections = wiring.to(layer)
    layers, ways = [s.layer for s in connections.sources], [s.way for s in connections.sources]
    spreads = [spread[source.name] for source in layers]
    index, channel = _numbered(layers)
    rows: dict[str, list[NDArray[np.generic]]] = {name: [] for name in ("channel", "rank", "at", "strength", "weight")}
    for unit, weights in connections.weights():
        length = np.concatenate([w.length * s for w, s in zip(weights, spreads, strict=True)]).astype(np.float32)
        total = np.concatenate([w.total for w in weights])
        order = np.argsort(-length, kind="stable")[: job.spec.config.connections.count]
        order = order[length[order] > 0]
        rows["channel"].append(np.full(len(order), unit, np.int32))
        rows["rank"].append(np.arange(1, len(order) + 1, dtype=np.int16))
        rows["at"].append(order)
        rows["strength"].append(np.where(total[order] < 0, -length[order], length[order]))
        rows["weight"].append(total[order].astype(np.float32))
    found = {name: np.concatenate(parts) if parts else np.zeros(0, np.int64) for name, parts in rows.items()}
    at = found.pop("at")
    names = np.array([source.name for source in layers], object)
    return parquet.to_arrow(schema.CONNECTIONS, found | {
        "model": [job.spec.model.name] * len(at), "dataset": [job.dataset.name] * len(at),
        "layer": [layer.name] * len(at), "source_layer": names[index[at]].tolist() if len(at) else [],
        "source_channel": channel[at] if len(at) else [],
        "path": np.array(ways, object)[index[at]].tolist() if len(at) else [],
    })  # fmt: skip


def _numbered(layers: Sequence[Layer]) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Return for all units of some layers the layer's place and the channel."""
    sizes = [layer.channels for layer in layers]
    index = np.repeat(np.arange(len(layers)), sizes)
    return index, np.concatenate([np.zeros(0, np.int32), *(np.arange(n, dtype=np.int32) for n in sizes)])


def _finish(job: Job, shard: Shard) -> Record:
    shards = [name for name in sorted(job.store.done("connections")) if name != "finish"]
    parts = [parquet.read(job.store.root / _partial(job, name)) for name in shards]
    with job.store.publication("connections", shard.name) as out:
        merged = pa.concat_tables(parts).unify_dictionaries()
        parquet.write(out.path(layout.table(job.store.run, "connections")), schema.CONNECTIONS, merged)
        return out.commit({"connections": len(merged)})


def _expected(job: Job) -> Expected:
    return Expected(len(_phases(job)[0]), 1)


STAGE = Stage("connections", "unit", _phases, _run, _expected)
