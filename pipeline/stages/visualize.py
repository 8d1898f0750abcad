"""Stage `visualize`: feature visualizations of the chosen units, each with its measures of trust."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.featurevis import Picture, Renderer, Rendering, Settings
from pipeline.graph import Layer
from pipeline.job import Job, Shard, Stage
from pipeline.stages.sizing import shard_sizes
from pipeline.stages.trust import Judge, Trust
from pipeline.timing import phase
from store import hdf5, layout, parquet, schema
from store.hdf5 import Array
from store.publish import Record

_TRUST = ("value", "value_vs_best_example", "rank_in_layer", "beats_median")


@dataclass(frozen=True)
class Group:
    """The pictures of one kind and direction of one layer, which share an HDF5 dataset."""

    layer: Layer
    kind: str
    direction: str
    pictures: tuple[Picture, ...]

    @property
    def dataset(self) -> str:
        return f"{self.kind}/{self.direction}"


def _groups(job: Job) -> list[Group]:
    v = job.config.visualize
    units = parquet.read(job.root / layout.table(job.run, "units"), ["layer", "channel", "dead"]).to_pandas()
    living = {str(name): group["channel"].tolist() for name, group in units[~units["dead"]].groupby("layer")}
    found = []
    for layer in job.visualized:
        channels = living.get(layer.name, [])
        channels = channels[: v.units_per_layer] if v.units_per_layer else channels
        for kind in v.kinds:
            for direction in v.directions:
                pictures = tuple(Picture(c, direction, r) for c in channels for r in range(v.repeats))
                found.append(Group(layer, kind, direction, pictures))
    return [group for group in found if group.pictures]


def _phases(job: Job) -> list[list[Shard]]:
    shards = []
    sizes = shard_sizes(job)
    for number, group in enumerate(_groups(job)):
        size = sizes[group.layer.name]
        for first in range(0, len(group.pictures), size):
            last = min(first + size, len(group.pictures))
            shards.append(Shard(f"{number:04d}-{first:06d}", first, last, last - first, group.layer.name))
    return [shards, [Shard("finish")]]


def _run(job: Job, shard: Shard, advance: Callable[[int], None]) -> Record:
    if shard.name == "finish":
        record = _finish(job, shard)
        advance(1)
        return record
    return _render(job, shard, advance)


def pictures_planned(job: Job) -> int:
    """Pictures the config asks for, dead units not yet taken off."""
    v = job.config.visualize
    units = sum(min(v.units_per_layer or layer.channels, layer.channels) for layer in job.visualized)
    return units * len(v.kinds) * len(v.directions) * v.repeats


def settings(job: Job, steps: int | None = None) -> Settings:
    v = job.config.visualize
    return Settings(
        size=v.size, steps=v.steps if steps is None else steps, batch=v.batch, learning_rate=v.learning_rate,
        seed=v.seed, input=v.input,
        parameterization=v.parameterization, transforms=v.transforms,
    )  # fmt: skip


def _render(job: Job, shard: Shard, advance: Callable[[int], None]) -> Record:
    group = _groups(job)[int(shard.name.partition("-")[0])]
    job.model.network.to(job.device)
    chosen = settings(job)
    renderer, judge = Renderer(job.model, group.layer, chosen), Judge(job, group.layer)
    starts = range(shard.first, shard.last, chosen.batch)
    batches = [group.pictures[a : min(a + chosen.batch, shard.last)] for a in starts]

    def render(pictures: tuple[Picture, ...]) -> tuple[Rendering, list[Trust]]:
        with phase("forward"):
            done = renderer.render(pictures, group.kind)
        with phase("reduce"):
            return done, judge.judge(done.images, pictures, group.kind)

    images, columns = [], []
    for done, trust in map(render, batches):
        images.append(done.images)
        for value, t in zip(done.values.tolist(), trust, strict=True):
            columns.append([value, t.value_vs_best_example, t.rank_in_layer, t.beats_median])
        advance(len(trust))
    arrays = {"images": Array(np.concatenate(images)), "trust": Array(np.array(columns, np.float64))}
    with job.publication("visualize", shard.name) as out:
        hdf5.write(out.path(layout.partial(job.run, "visualize", f"{shard.name}.h5")), arrays)
        return out.commit()


def _finish(job: Job, shard: Shard) -> Record:
    v, run = job.config.visualize, job.run
    files: dict[str, dict[str, Array]] = {}
    rows: list[dict[str, object]] = []
    for number, group in enumerate(_groups(job)):
        images, trust = _read(job, number)
        files.setdefault(group.layer.name, {})[group.dataset] = Array(_rgb(images), (1, *images.shape[1:3], 3))
        rows += [
            {
                "layer": group.layer.name, "channel": picture.channel, "kind": group.kind,
                "direction": group.direction, "repeat": picture.repeat,
                "objective": f"{group.kind}({group.layer.name}:{picture.channel})",
                "h5_file": layout.visualizations(run, group.layer.name), "h5_dataset": group.dataset, "h5_index": i,
            } | dict(zip(_TRUST, trust[i].tolist(), strict=True))
            for i, picture in enumerate(group.pictures)
        ]  # fmt: skip
    columns: dict[str, object] = {name: [row[name] for row in rows] for name in (rows[0] if rows else ())}
    with job.publication("visualize", shard.name) as out:
        for layer, arrays in files.items():
            hdf5.write(out.path(layout.visualizations(run, layer)), arrays)
        if rows:
            ranks = [int(float(str(r))) for r in columns["rank_in_layer"]]  # type: ignore[attr-defined]
            parquet.write_columns(out.path(layout.table(run, "visualizations")), schema.VISUALIZATIONS, columns | {
                "model": job.model.name, "dataset": job.dataset, "size": v.size, "steps": v.steps,
                "value_vs_best_example": np.array(columns["value_vs_best_example"], np.float32),
                "rank_in_layer": [r if r > 0 else None for r in ranks],
                "beats_median": [bool(b) for b in columns["beats_median"]],  # type: ignore[attr-defined]
            })  # fmt: skip
        return out.commit({"pictures": len(rows)})


def _read(job: Job, number: int) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    def parts(name: str) -> Iterator[NDArray[np.generic]]:
        for shard in sorted(job.done("visualize")):
            if shard.startswith(f"{number:04d}-"):
                yield hdf5.read(job.root / layout.partial(job.run, "visualize", f"{shard}.h5"), name)

    return np.concatenate(list(parts("images"))), np.concatenate(list(parts("trust")))


def _rgb(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.repeat(images, 3, axis=3) if images.shape[3] == 1 else images


STAGE = Stage("visualize", "unit", _phases, _run, at_once=lambda job: job.streams)
