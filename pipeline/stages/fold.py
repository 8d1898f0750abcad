"""Stage `fold`: turn the scan's partials into the tables and arrays of the store.

There is one shard per layer, then one per block of images, then a final shard.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline import config as configs
from pipeline.graph.analysis.boxes import boxes
from pipeline.job import Expected, Job, Shard, Stage, Work
from pipeline.runtime.timing import phase
from pipeline.scan.batch_statistics import check_sign
from pipeline.stages.describe import description_tables
from pipeline.stages.fold_layer import Columns, LayerResult, fold_layer
from pipeline.stages.partials import ScanPartials
from pipeline.statistics import components
from pipeline.statistics.components import Components
from store import codes, hdf5, layout, parquet, schema
from store.commits import Record
from store.errors import UsageError
from store.hdf5 import Array
from store.publish import Publication
from store.schema import Table

_PARTIAL_TABLES = (schema.UNITS, schema.TOP_EXAMPLES, schema.CLASS_STATS, schema.NEIGHBORS)


def _phases(job: Job) -> list[list[Shard]]:
    layers = [Shard(f"layer-{i:04d}", i, i + 1, x.channels, x.name) for i, x in enumerate(job.spec.layers)]
    total = len(job.dataset.images)
    blocks = [
        Shard(f"block-{i:05d}", a, min(a + layout.BLOCK, total)) for i, a in enumerate(range(0, total, layout.BLOCK))
    ]
    return [layers, blocks, [Shard("finish")]]


def _run(job: Job, shard: Shard, advance: Callable[[int], None]) -> Record:
    partials = ScanPartials(job)
    if not len(partials.ids):
        raise UsageError(f"{job.store.run}: no picture could be decoded, so there is nothing to fold")
    return fold_shard(job, partials, shard, advance)


def fold_shard(job: Job, partials: ScanPartials, shard: Shard, advance: Callable[[int], None]) -> Record:
    """Fold one layer, one block of images, or the rest, and commit the shard."""
    if shard.name == "finish":
        record = _finish(job, partials, shard)
    elif shard.layer:
        return _fold_layer(job, partials, shard, advance)
    else:
        record = _fold_block(job, shard)
    advance(1)
    return record


def _fold_layer(job: Job, partials: ScanPartials, shard: Shard, advance: Callable[[int], None]) -> Record:
    layer, run = job.spec.layers[shard.first], job.store.run
    with phase("reduce"):
        result = fold_layer(job, partials, shard.first, advance)
    minimum = np.concatenate([u["minimum"] for u in result.units])
    check_sign(layer, float(minimum.min()))
    names: Columns = {"model": job.spec.model.name, "dataset": job.dataset.name, "layer": layer.name}
    examples = (*result.examples, *result.lowest)
    size = job.spec.model.preprocess.height, job.spec.model.preprocess.width
    tables = {
        schema.UNITS: result.units,
        schema.TOP_EXAMPLES: [e | boxes(layer, e["y"], e["x"], size) for e in examples],
        schema.CLASS_STATS: result.class_stats,
        schema.NEIGHBORS: [result.neighbors | {"other_layer": layer.name}],
    }
    with job.store.publication("fold", shard.name) as out:
        for table, pieces in tables.items():
            path = out.path(layout.partial(run, "fold", f"{shard.name}-{table.name}.parquet"))
            parquet.write(path, table, _join(table, names, pieces))
        path = out.path(layout.tail_by_unit(run, layer.name))
        parquet.write(path, schema.TAIL, _join(schema.TAIL, names, result.tail))
        _write_arrays(job, out, shard, result, partials.ids)
        return out.commit()


def _join(table: Table, names: Columns, pieces: Sequence[Columns]) -> pa.Table:
    return pa.concat_tables([parquet.to_arrow(table, names | piece) for piece in pieces]).unify_dictionaries()


def _write_arrays(job: Job, out: Publication, shard: Shard, result: LayerResult, ids: NDArray[np.int64]) -> None:
    images = len(job.dataset.images)
    dense = {}
    for name, blocks in result.codes.items():
        coded = np.concatenate(blocks, axis=1)
        full = np.zeros((coded.shape[1], images), np.uint8)  # rejected pictures keep code 0
        full[:, ids] = coded.T
        dense[name] = Array(full, (1, layout.BLOCK), "huffman")
    hdf5.write(out.path(layout.codes_by_unit(job.store.run, shard.layer)), dense)
    arrays = {name: Array(np.concatenate(pieces)) for name, pieces in result.edges.items()}
    offsets = np.cumsum([0, *(int(n) for s in result.sketches for n in np.diff(s.offsets))])
    arrays["sketch/offsets"] = Array(offsets.astype(np.int64))
    arrays["sketch/bins"] = Array(np.concatenate([s.bins for s in result.sketches]))
    arrays["sketch/counts"] = Array(np.concatenate([s.counts for s in result.sketches]))
    if result.components is not None:
        arrays["directions"] = Array(result.components.directions)
        arrays["deviations"] = Array(result.components.deviations)
    arrays["sample"] = Array(np.concatenate(result.codes["max"], axis=1)[codes.sample(len(ids))].T)
    hdf5.write(out.path(layout.partial(job.store.run, "fold", f"{shard.name}.h5")), arrays)


def _fold_block(job: Job, shard: Shard) -> Record:
    """Write three files for one range of image ids.

    They are the image-major copy of the dense record, that of the tail, and the coordinates of each image among the
    principal components of each layer.
    """
    block, count = shard.first // layout.BLOCK, shard.last - shard.first
    units = int(job.spec.units.offsets[-1])
    with job.store.publication("fold", shard.name) as out:
        arrays = {}
        for name in ("max", "mean"):
            data = np.zeros((count, units), np.uint8)
            for index, layer in enumerate(job.spec.layers):
                with hdf5.reading(job.store.root / layout.codes_by_unit(job.store.run, layer.name)) as file:
                    data[:, job.spec.units.slice(index)] = hdf5.dataset(file, name)[:, shard.first : shard.last].T
            arrays[name] = Array(data, layout.image_chunk(units), "huffman")
        hdf5.write(out.path(layout.codes_by_image(job.store.run, block)), arrays)
        hdf5.write(out.path(layout.coordinates(job.store.run, block)), _coordinates(job, arrays["max"].data))
        tails = []
        for layer in job.spec.layers:
            tail = parquet.read(job.store.root / layout.tail_by_unit(job.store.run, layer.name))
            ids = tail["image_id"]
            inside = pc.and_(pc.greater_equal(ids, shard.first), pc.less(ids, shard.last))
            tails.append(tail.filter(inside))
        table = pa.concat_tables(tails).unify_dictionaries()
        order = np.argsort(table["image_id"].to_numpy(), kind="stable")
        parquet.write(out.path(layout.tail_by_image(job.store.run, block)), schema.TAIL, table.take(order))
        return out.commit()


def _coordinates(job: Job, data: NDArray[np.uint8]) -> dict[str, Array]:
    """Compute the coordinates of images among each layer's principal components, from their codes, uint8 [n, U]."""
    arrays: dict[str, Array] = {}
    for index, layer in enumerate(job.spec.layers):
        standard, principal = _standard_and_components(job, index, layer.name)
        near, length = components.coordinates(data[:, job.spec.units.slice(index)], standard, principal)
        arrays[f"{layer.name}/coordinates"], arrays[f"{layer.name}/lengths"] = Array(near), Array(length)
    return arrays


def _standard_and_components(job: Job, index: int, name: str) -> tuple[NDArray[np.float32], Components]:
    """Read a layer's standardized codes and its principal components.

    They lie in the layer's partial. If a block is repaired after the final shard, that partial is gone, and they are
    read from the arrays that the final shard wrote.
    """
    partial = job.store.root / layout.partial(job.store.run, "fold", f"layer-{index:04d}.h5")
    if partial.exists():
        paths, prefix = (partial, partial), ""
    else:
        paths = (
            job.store.root / layout.array(job.store.run, "codes"),
            job.store.root / layout.array(job.store.run, "components"),
        )
        prefix = f"{name}/"
    counts, means = (hdf5.read(paths[0], f"{prefix}max/{key}") for key in ("counts", "means"))
    directions, deviations = (hdf5.read(paths[1], f"{prefix}{key}") for key in ("directions", "deviations"))
    return codes.standardized(counts, means), Components(directions, deviations)


def _finish(job: Job, partials: ScanPartials, shard: Shard) -> Record:
    run, names = job.store.run, {"model": job.spec.model.name, "dataset": job.dataset.name}
    with job.store.publication("fold", shard.name) as out:
        for table in _PARTIAL_TABLES:
            parts = [
                parquet.read(job.store.root / layout.partial(run, "fold", f"layer-{i:04d}-{table.name}.parquet"))
                for i in range(len(job.spec.layers))
            ]
            path = out.path(layout.table(run, table.name))
            merged = pa.concat_tables(parts).unify_dictionaries()
            parquet.write(path, table, merged)
            if table is schema.CLASS_STATS:
                order = np.argsort(merged["class_index"].to_numpy(), kind="stable")
                parquet.write(out.path(layout.class_stats_by_class(run)), table, merged.take(order))
        for table, columns in description_tables(job).items():
            parquet.write_columns(out.path(layout.table(run, table.name)), table, columns)
        parquet.write_columns(out.path(layout.table(run, "rejected_images")), schema.REJECTED, names | {
            "image_id": [i for i, _ in partials.rejected], "reason": [r for _, r in partials.rejected],
        })  # fmt: skip
        _write_predictions(job, partials, out, names)
        _write_edges_and_sketches(job, out)
        _write_comparison(job, out)
        out.path(layout.config(run)).write_text(configs.to_toml(job.spec.keys))
        return out.commit({"images": len(partials.ids), "rejected": len(partials.rejected)})


def _write_predictions(job: Job, partials: ScanPartials, out: Publication, names: dict[str, Any]) -> None:
    predictions = partials.predictions()
    if predictions is None:
        return
    classes, probabilities = predictions
    each, labels = classes.shape[1], job.spec.model.labels
    parquet.write_columns(out.path(layout.table(job.store.run, "predictions")), schema.PREDICTIONS, names | {
        "image_id": np.repeat(partials.ids, each),
        "rank": np.tile(np.arange(1, each + 1), len(classes)),
        "class_index": classes.ravel(),
        "label": [labels[c] if labels and c < len(labels) else None for c in classes.ravel().tolist()],
        "probability": probabilities.ravel(),
    })  # fmt: skip


def _write_edges_and_sketches(job: Job, out: Publication) -> None:
    edges: dict[str, Array] = {}
    sketches: dict[str, Array] = {}
    for i, layer in enumerate(job.spec.layers):
        with hdf5.reading(job.store.root / layout.partial(job.store.run, "fold", f"layer-{i:04d}.h5")) as file:
            for of in ("max", "mean"):
                for key in ("edges", "counts", "means"):
                    data = hdf5.dataset(file, f"{of}/{key}")[()]
                    edges[f"{layer.name}/{of}/{key}"] = Array(data, (64, 256), "gzip")
            for key in ("offsets", "bins", "counts"):
                sketches[f"{layer.name}/{key}"] = Array(hdf5.dataset(file, f"sketch/{key}")[()], None, "gzip")
    hdf5.write(out.path(layout.array(job.store.run, "codes")), edges)
    hdf5.write(out.path(layout.array(job.store.run, "sketches")), sketches)


def _write_comparison(job: Job, out: Publication) -> None:
    """Write what similarity queries read first: a sample of the dense record, and each layer's principal components."""
    arrays: dict[str, Array] = {}
    samples = []
    for i, layer in enumerate(job.spec.layers):
        with hdf5.reading(job.store.root / layout.partial(job.store.run, "fold", f"layer-{i:04d}.h5")) as file:
            for key in ("directions", "deviations"):
                arrays[f"{layer.name}/{key}"] = Array(hdf5.dataset(file, key)[()])
            samples.append(hdf5.dataset(file, "sample")[()])
    hdf5.write(out.path(layout.array(job.store.run, "components")), arrays)
    sample = {"max": Array(np.concatenate(samples), (64, codes.SAMPLE), "huffman")}
    hdf5.write(out.path(layout.array(job.store.run, "sample")), sample)


def _expected(job: Job) -> Expected:
    return Expected(len(job.spec.layers), -(-len(job.dataset.entries) // layout.BLOCK) + 1)


def _work(job: Job) -> Work:
    return Work(folded=int(job.spec.units.offsets[-1]))


STAGE = Stage("fold", "unit", _phases, _run, _expected, _work, at_once=lambda job: job.runtime.streams)
