"""Stage `visualize`: render feature visualizations of the chosen units, with metrics of how far to trust each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.featurevis import Picture, Renderer, Settings, kinds
from pipeline.graph import Layer
from pipeline.job import Expected, Job, Shard, Stage, Work
from pipeline.runtime.timing import phase
from pipeline.stages.visualization_metrics import VisualizationMetrics
from pipeline.stages.work_sizes import shard_sizes
from store import hdf5, layout, parquet, schema
from store.commits import Record
from store.hdf5 import Array

# The columns of a partial's array `numbers`. `canvas` is 1 if the network saw the canvas at its own size.
_NUMBERS = ("value", "value_transformed", "value_vs_best_example", "rank_in_layer", "beats_median", "canvas")


@dataclass(frozen=True)
class Group:
    """The pictures of one layer, kind and direction. They share an HDF5 dataset."""

    layer: Layer
    kind: str
    direction: str
    pictures: tuple[Picture, ...]
    together: int  # this many consecutive pictures must be in the same batch

    @property
    def dataset(self) -> str:
        return f"{self.kind}/{self.direction}"

    def batch(self, wanted: int) -> int:
        """Return the batch size: `wanted`, rounded down to a multiple of `together` but at least `together`.

        For deepdream it is at most the number of pictures.
        """
        if self.kind == "deepdream":
            return min(wanted, len(self.pictures))
        return max(wanted // self.together, 1) * self.together

    def padded(self, pictures: int, batch: int) -> int:
        """Return the size of a batch for so many pictures: whole groups, a power of two of them, at most `batch`."""
        groups = -(-pictures // self.together)
        return min(1 << (groups - 1).bit_length(), batch // self.together) * self.together


def _groups(job: Job) -> list[Group]:
    """Return the groups to render, without dead units. The table `units` must be committed."""
    v = job.spec.config.visualize
    units = parquet.read(
        job.store.root / layout.table(job.store.run, "units"), ["layer", "channel", "dead"]
    ).to_pandas()
    living = {str(name): group["channel"].tolist() for name, group in units[~units["dead"]].groupby("layer")}
    groups = []
    for layer in job.spec.visualized:
        channels = living.get(layer.name, [])
        channels = channels[: v.units_per_layer] if v.units_per_layer else channels
        if channels:
            groups += [group for kind in v.kinds for group in _of_kind(job, layer, kind, channels)]
    return groups


def _of_kind(job: Job, layer: Layer, kind: str, channels: Sequence[int]) -> list[Group]:
    v = job.spec.config.visualize
    if kind == "deepdream":
        pictures = tuple(Picture(kinds.WHOLE_LAYER, "positive", r) for r in range(v.repeats))
        return [Group(layer, kind, "positive", pictures, 1)]
    together = kinds.group_of(kind, v.repeats)
    repeats = range(max(v.repeats, together))
    return [
        Group(layer, kind, direction, tuple(Picture(c, direction, r) for c in channels for r in repeats), together)
        for direction in v.directions
    ]


def _phases(job: Job) -> list[list[Shard]]:
    shards = []
    sizes = shard_sizes(job)
    for number, group in enumerate(_groups(job)):
        size = group.batch(sizes[group.layer.name])
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
    """Return the number of pictures that the config asks for, dead units included."""
    return sum(len(group.pictures) for group in _groups_planned(job))


def _expected(job: Job) -> Expected:
    return Expected(len(shards_planned(job)), 1, exact=False)


def shards_planned(job: Job) -> tuple[tuple[Layer, tuple[int, ...]], ...]:
    """Return the layer of each shard that the config asks for, and the sizes of its batches, dead units included."""
    sizes, wanted = shard_sizes(job), job.spec.config.visualize.batch
    shards = []
    for group in _groups_planned(job):
        size, batch = group.batch(sizes[group.layer.name]), group.batch(wanted)
        for first in range(0, len(group.pictures), size):
            count = min(size, len(group.pictures) - first)
            batches = (group.padded(min(batch, count - start), batch) for start in range(0, count, batch))
            shards.append((group.layer, tuple(batches)))
    return tuple(shards)


def _groups_planned(job: Job) -> list[Group]:
    """Return the groups that the config asks for, dead units included."""
    v = job.spec.config.visualize
    return [
        group
        for layer in job.spec.visualized
        for kind in v.kinds
        for group in _of_kind(job, layer, kind, range(min(v.units_per_layer or layer.channels, layer.channels)))
    ]


def settings(job: Job, steps: int | None = None, batch: int | None = None) -> Settings:
    """Return the renderer's settings from the config; `steps` and `batch` replace the config's values."""
    v = job.spec.config.visualize
    return Settings(
        size=v.size, steps=v.steps if steps is None else steps, batch=batch or v.batch, learning_rate=v.learning_rate,
        seed=v.seed, input=v.input, parameterization=v.parameterization, color=v.color, transforms=v.transforms,
        precision=job.spec.config.compute.precision,
    )  # fmt: skip


def _render(job: Job, shard: Shard, advance: Callable[[int], None]) -> Record:
    group = _groups(job)[int(shard.name.partition("-")[0])]
    job.spec.model.network.to(job.spec.device)
    size = group.batch(job.spec.config.visualize.batch)
    renderer = Renderer(
        job.spec.model, kinds.layers_of(job.spec.model, group.layer, group.kind), settings(job, batch=size)
    )
    metrics = VisualizationMetrics(job, group.layer)
    images, numbers = [], []
    for first in range(shard.first, shard.last, size):
        pictures = group.pictures[first : min(first + size, shard.last)]
        with phase("forward"):
            done = renderer.render(pictures, group.kind, group.together, batch=group.padded(len(pictures), size))
        images.append(done.images)
        with phase("reduce"):
            trusts = metrics.judge(done.images, pictures, group.kind)
        for value, moved, t in zip(done.values.tolist(), done.transformed.tolist(), trusts, strict=True):
            ratio, rank, beats = t.value_vs_best_example, t.rank_in_layer, t.beats_median
            numbers.append([value, moved, ratio, rank, beats, renderer.input == "canvas"])
        advance(len(pictures))
    arrays = {"images": Array(np.concatenate(images)), "numbers": Array(np.array(numbers, np.float64))}
    with job.store.publication("visualize", shard.name) as out:
        hdf5.write(out.path(layout.partial(job.store.run, "visualize", f"{shard.name}.h5")), arrays)
        channels = [picture.channel for picture in group.pictures[shard.first : shard.last]]
        # the page shows these before the stage is complete
        return out.commit(
            {"layer": group.layer.name, "kind": group.kind, "direction": group.direction, "channels": channels}
        )


def _finish(job: Job, shard: Shard) -> Record:
    v, run = job.spec.config.visualize, job.store.run
    files: dict[str, dict[str, Array]] = {}
    rows: list[dict[str, object]] = []
    numbers: list[NDArray[np.float64]] = []
    for number, group in enumerate(_groups(job)):
        images, group_numbers = _read(job, number)
        files.setdefault(group.layer.name, {})[group.dataset] = Array(_rgb(images), (1, *images.shape[1:3], 3))
        numbers.append(group_numbers)
        layers = kinds.layers_of(job.spec.model, group.layer, group.kind)
        rows += [
            {
                "layer": group.layer.name, "channel": picture.channel, "kind": group.kind,
                "direction": group.direction, "repeat": picture.repeat,
                "objective": kinds.described(group.kind, layers, picture.channel),
                "h5_file": layout.visualizations(run, group.layer.name), "h5_dataset": group.dataset, "h5_index": i,
            }
            for i, picture in enumerate(group.pictures)
        ]  # fmt: skip
    columns: dict[str, object] = {name: [row[name] for row in rows] for name in (rows[0] if rows else ())}
    with job.store.publication("visualize", shard.name) as out:
        for layer, arrays in files.items():
            hdf5.write(out.path(layout.visualizations(run, layer)), arrays)
        if rows:
            table = out.path(layout.table(run, "visualizations"))
            same = {"model": job.spec.model.name, "dataset": job.dataset.name, "size": v.size, "steps": v.steps}
            parquet.write_columns(table, schema.VISUALIZATIONS, columns | same | _typed(np.concatenate(numbers)))
        return out.commit({"pictures": len(rows)})


def _typed(numbers: NDArray[np.float64]) -> dict[str, object]:
    """Convert the array `numbers` of the partials to typed columns of the table `visualizations`."""
    column = dict(zip(_NUMBERS, numbers.T, strict=True))
    return {
        "value": column["value"].astype(np.float32),
        "value_transformed": column["value_transformed"].astype(np.float32),
        "value_vs_best_example": column["value_vs_best_example"].astype(np.float32),
        "rank_in_layer": [int(rank) if rank > 0 else None for rank in column["rank_in_layer"]],
        "beats_median": column["beats_median"] > 0,
        "input": ["canvas" if canvas else "model" for canvas in column["canvas"]],
    }


def _read(job: Job, number: int) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """Read the images and numbers of the group with this index, in the order of its pictures."""

    def parts(name: str) -> Iterator[NDArray[np.generic]]:
        for shard in sorted(job.store.done("visualize")):
            if shard.startswith(f"{number:04d}-"):
                yield hdf5.read(job.store.root / layout.partial(job.store.run, "visualize", f"{shard}.h5"), name)

    return np.concatenate(list(parts("images"))), np.concatenate(list(parts("numbers")))


def _rgb(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.repeat(images, 3, axis=3) if images.shape[3] == 1 else images


def _work(job: Job) -> Work:
    return Work(rendered=shards_planned(job))


STAGE = Stage("visualize", "unit", _phases, _run, _expected, _work, at_once=lambda job: job.runtime.streams)
