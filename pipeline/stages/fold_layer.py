"""Compute what the fold stores of one layer: unit statistics, top examples, tail, codes, sketches, class statistics."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.graph import Layer
from pipeline.job import Job
from pipeline.scan.measurer import positions
from pipeline.stages.partials import ScanPartials
from pipeline.stages.work_sizes import channels_together
from pipeline.statistics import coding, components, correlation, moments, ranking
from pipeline.statistics.components import Components
from store import codes, sketch

NEIGHBORS = 20

Columns = dict[str, Any]


@dataclass(frozen=True)
class Classes:
    """The classes of the accepted images.

    `indices` are the class numbers and `sizes` their numbers of images, int64 [K]. `of_image`, int64 [N], is the row of
    each image's class in `indices`, or -1 for an image without a class.
    """

    indices: NDArray[np.int64]
    sizes: NDArray[np.int64]
    of_image: NDArray[np.int64]


@dataclass
class LayerResult:
    """The results of one layer: pieces of the tables' columns, one per block of channels, and of the dense arrays."""

    units: list[Columns] = field(default_factory=list)
    examples: list[Columns] = field(default_factory=list)
    lowest: list[Columns] = field(default_factory=list)
    tail: list[Columns] = field(default_factory=list)
    class_stats: list[Columns] = field(default_factory=list)
    neighbors: Columns = field(default_factory=dict)
    components: Components | None = None
    codes: dict[str, list[NDArray[np.uint8]]] = field(default_factory=lambda: {"max": [], "mean": []})
    edges: dict[str, list[NDArray[Any]]] = field(default_factory=dict)
    sketches: list[sketch.Sketch] = field(default_factory=list)


@dataclass(frozen=True)
class _Block:
    """Some channels of a layer over all N images: arrays [N, channels].

    `places` and `low_places` are positions in the map, row * width + column. `ordered` is `values` sorted by column.
    """

    first: int
    values: NDArray[np.float32]
    places: NDArray[np.integer[Any]]
    means: NDArray[np.float32]
    lows: NDArray[np.float32] | None
    low_places: NDArray[np.integer[Any]] | None
    ordered: NDArray[np.float32]


def fold_layer(job: Job, partials: ScanPartials, index: int, advance: Callable[[int], None]) -> LayerResult:
    """Fold a layer, given by its index in the run, block of channels by block of channels."""
    layer, result = job.spec.layers[index], LayerResult()
    classes = classes_of(job, partials.ids)
    for channels in blocks(job, index):
        block = _read(partials, layer, channels)
        result.units.append(_units(job, partials, index, block, classes))
        _images_of_units(job, partials.ids, layer, block, result)
        result.class_stats.append(_class_stats(block, classes))
        _dense(layer, block, result)
        advance(channels.stop - channels.start)
    _together(partials, layer, result)
    return result


def blocks(job: Job, index: int) -> list[slice]:
    """Divide a layer's channels into pieces that fit into memory, at the boundaries of the partials' chunks."""
    units, width = job.spec.units.slice(index), channels_together(len(job.dataset.images))
    cuts = [0, *range(width - units.start % width, units.stop - units.start, width), units.stop - units.start]
    return [slice(a, b) for a, b in itertools.pairwise(cuts)]


def classes_of(job: Job, ids: NDArray[np.int64]) -> Classes:
    column = job.dataset.images["class_index"].to_pylist()
    labels = np.array([-1 if column[i] is None else int(column[i]) for i in ids], np.int64)
    indices, sizes = np.unique(labels[labels >= 0], return_counts=True)
    rows = np.where(labels >= 0, np.searchsorted(indices, labels), -1)
    return Classes(indices, sizes.astype(np.int64), rows)


def _read(partials: ScanPartials, layer: Layer, channels: slice) -> _Block:
    names = ("max", "argmax", "mean", *(("min", "argmin") if layer.signed else ()))
    columns = partials.columns(layer.name, names, channels)
    high, positions_of_max, means = (columns[name] for name in names[:3])
    ordered = np.sort(high, axis=0)
    return _Block(channels.start, high, positions_of_max, means, columns.get("min"), columns.get("argmin"), ordered)


def _units(job: Job, partials: ScanPartials, layer_index: int, block: _Block, classes: Classes) -> Columns:
    layer, channels = job.spec.layers[layer_index], block.values.shape[1]
    start = job.spec.units.slice(layer_index).start + block.first
    total, square, active, minimum = partials.moments(slice(start, start + channels))
    seen = len(block.values) * positions(layer, job.spec.config.scan.border)
    mean, variance = moments.mean_and_variance(total, square, seen)
    exact = block.values.astype(np.float64)
    constant = block.ordered[0] == block.ordered[-1]
    means = ranking.class_means(block.values, classes.of_image, len(classes.indices))
    index, best = ranking.selectivity(means, classes.sizes)
    return {
        "channel": np.arange(block.first, block.first + channels),
        "mean": mean,
        "variance": variance,
        "minimum": minimum,
        "maximum": block.ordered[-1],
        "fraction_active": active / seen,
        "max_mean": exact.mean(0),
        "max_sd": np.where(constant, 0, exact.std(0)),
        **ranking.quantiles(block.ordered),
        "saturated": (block.values >= layer.upper_bound).mean(0) if layer.upper_bound else np.full(channels, np.nan),
        "selectivity": np.full(channels, np.nan) if layer.signed else index,
        "top_class": [int(classes.indices[b]) if b >= 0 else None for b in best],
        "dead": constant if layer.signed else block.ordered[-1] <= 0,
    }


def _images_of_units(job: Job, ids: NDArray[np.int64], layer: Layer, block: _Block, result: LayerResult) -> None:
    scan = job.spec.config.scan
    deepest = max(scan.topk, ranking.tail_length(len(ids)))
    high: list[NDArray[np.int64]] = []
    low: list[NDArray[np.int64]] = []
    tails: list[NDArray[np.int64]] = []
    tail_p: list[NDArray[np.float64]] = []
    for c in range(block.values.shape[1]):
        rows = ranking.highest(block.values[:, c], block.means[:, c], ids, deepest, above_zero=not layer.signed)
        p = ranking.tail_probabilities(block.values[rows, c], block.ordered[:, c])
        kept = (np.arange(len(rows)) < codes.TAIL_MIN_IMAGES) | (p <= codes.TAIL_MAX_P)
        high.append(rows[: scan.topk])
        tails.append(rows[kept])
        tail_p.append(p[kept])
        if block.lows is not None:
            low.append(ranking.lowest(block.lows[:, c], ids, scan.lowest))
    tail = _gather(ids, layer, block, tails, block.values, block.places)
    result.tail.append({k: tail[k] for k in ("channel", "image_id", "value", "y", "x")} | {"tail_p": _flat(tail_p)})
    result.examples.append(_gather(ids, layer, block, high, block.values, block.places) | {"direction": "highest"})
    if block.lows is not None and block.low_places is not None:
        result.lowest.append(_gather(ids, layer, block, low, block.lows, block.low_places) | {"direction": "lowest"})


def _flat(pieces: list[Any]) -> NDArray[Any]:
    return np.concatenate(pieces) if pieces else np.zeros(0, np.int64)


def _gather(
    ids: NDArray[np.int64],
    layer: Layer,
    block: _Block,
    rows: list[NDArray[np.int64]],
    values: NDArray[np.float32],
    positions_in_map: NDArray[np.integer[Any]],
) -> Columns:
    """Return columns for the chosen rows of each channel, with ranks from 1."""
    lengths = [len(r) for r in rows]
    column = np.repeat(np.arange(len(rows)), lengths)
    row = _flat(rows)
    position = positions_in_map[row, column].astype(np.int64)
    return {
        "channel": column + block.first,
        "rank": _flat([np.arange(1, n + 1) for n in lengths]),
        "image_id": ids[row],
        "value": values[row, column],
        "mean": block.means[row, column],
        "y": position // layer.width if layer.spatial else [None] * len(row),
        "x": position % layer.width if layer.spatial else [None] * len(row),
    }


def _class_stats(block: _Block, classes: Classes) -> Columns:
    labelled = classes.of_image >= 0
    values, of_image = block.values[labelled], classes.of_image[labelled]
    means = ranking.class_means(values, of_image, len(classes.indices))
    areas = np.full(means.shape, np.nan)
    if (classes.sizes >= ranking.FEWEST_OF_CLASS).any():
        for c in range(values.shape[1]):
            areas[:, c] = ranking.auc(values[:, c], of_image, classes.sizes)
    count = values.shape[1]
    return {
        "channel": np.repeat(np.arange(block.first, block.first + count), len(classes.indices)),
        "class_index": np.tile(classes.indices, count),
        "mean_max": means.T.ravel().astype(np.float32),
        "auc": areas.T.ravel().astype(np.float32),
    }


def _dense(layer: Layer, block: _Block, result: LayerResult) -> None:
    for name, values, resolution in (("max", block.values, codes.MAX), ("mean", block.means, codes.MEAN)):
        ordered = block.ordered if name == "max" else np.sort(values, axis=0)
        edge = codes.edges_of_sorted(ordered, layer.signed, resolution)
        coded, counts, means = coding.encode(values, edge)
        result.codes[name].append(coded)
        for key, array in (("edges", edge), ("counts", counts), ("means", means)):
            result.edges.setdefault(f"{name}/{key}", []).append(array)
    result.sketches.append(sketch.build(block.values, layer.signed))


def _together(partials: ScanPartials, layer: Layer, result: LayerResult) -> None:
    """Find the most correlated units of each unit, and the layer's principal components."""
    mean, sd = (np.concatenate([u[name] for u in result.units]) for name in ("max_mean", "max_sd"))
    dead = np.concatenate([u["dead"] for u in result.units])
    matrix = correlation.correlations(partials.rows(layer.name, "max"), len(partials.ids), mean, sd)
    channel, other = correlation.nearest(matrix, (sd > 0) & ~dead, NEIGHBORS)
    each = len(channel) // max(len(np.unique(channel)), 1)
    result.neighbors = {
        "channel": channel,
        "rank": np.tile(np.arange(1, each + 1), len(channel) // each) if each else channel,
        "other_channel": other,
        "correlation": matrix[channel, other].astype(np.float32),
    }
    result.components = components.principal(matrix)
