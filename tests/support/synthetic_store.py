"""A small store made through `store/` from random activation maps, which are kept: every answer can be re-derived.

Values are rounded to quarters and clipped at 6, so that ties are everywhere; channel 5 of `stem.relu` sits at 6 on a
quarter of the images, channel 3 is dead. The other layers are signed, with a constant channel 2. The index rejects
picture 5, and the scan picture 11.
"""

from __future__ import annotations

import io
import itertools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from pipeline.statistics import components
from store import codes, hdf5, layout, parquet, publish, schema
from store.hdf5 import Array

SIZE = 32  # side of the network's input
REJECTED = {5: "truncated file", 11: "image file is truncated"}  # by the index, by the scan
LABELS = ("crane", "lighthouse", "crane")  # a label twice, as ImageNet has
SYNSETS = ("n02012849", "n02814860", "n03126707")
CLASSES = (134, 437, 517)
COUNT = 6  # example pictures kept a unit


@dataclass(frozen=True)
class SyntheticLayer:
    name: str
    op: str
    channels: int
    side: int
    signed: bool

    @property
    def stride(self) -> int:
        return SIZE // self.side


LAYERS = (
    SyntheticLayer("stem.relu", "relu6", 6, 8, False),
    SyntheticLayer("block.0.add", "add", 5, 4, True),
    SyntheticLayer("head", "linear", 7, 1, True),
)


@dataclass(frozen=True)
class Synthetic:
    """What the store was made from. `maps`: layer -> float32 [images, C, side, side]; `ids`: accepted image ids."""

    root: Path
    model: str
    dataset: str
    maps: dict[str, NDArray[np.float32]]
    ids: NDArray[np.int64]
    class_index: NDArray[np.int64]
    paths: list[str]
    pictures: NDArray[np.uint8]
    kept: int  # examples a unit in `top_examples`
    sample: int  # code edges come from every so manieth image, as from a calibration sample

    def maxima(self, layer: str) -> NDArray[np.float32]:
        """[images, C], rejected ones too."""
        return self.maps[layer].max((2, 3))

    def means(self, layer: str) -> NDArray[np.float32]:
        return self.maps[layer].mean((2, 3), dtype=np.float64).astype(np.float32)

    @property
    def run(self) -> str:
        return layout.run_name(self.model, self.dataset)


def build(
    root: Path,
    *,
    model: str = "toy",
    dataset: str = "shapes",
    images: int = 60,
    seed: int = 0,
    stages: int = 4,
    kept: int = 25,
    sample: int = 1,
) -> Synthetic:
    """Adds one run to a store. `stages`: how many of index, fold, examples and visualize have run."""
    publish.ensure_store(root)
    made = _imagine(root, model, dataset, images, seed, kept, sample)
    for stage in (_index, _fold, _examples, _visualize)[:stages]:
        stage(made)
    publish.write_manifest(root)
    return made


def _imagine(root: Path, model: str, dataset: str, images: int, seed: int, kept: int, sample: int) -> Synthetic:
    random = np.random.default_rng(seed)
    class_rank = np.arange(images) * 3 // images
    maps = {}
    for layer in LAYERS:
        shape = (images, layer.channels, layer.side, layer.side)
        bias = random.normal(0, 0.8, (images, layer.channels, 1, 1))
        bias[class_rank == 1, 1] += 1.5  # channel 1 likes lighthouses
        bias[7] += 3  # a picture that excites everything
        x = random.normal(0, 1, shape) + bias + random.normal(0, 0.5, (1, layer.channels, 1, 1))
        x = np.round(x * 4) / 4
        if layer.signed:
            x[:, 2] = -1.25
        else:
            x[::4, 5] += 6
            x = np.clip(x - 1.5, 0, 6)
            x[:, 3] = 0
        maps[layer.name] = x.astype(np.float32)
    ids = np.array([i for i in range(images) if i not in REJECTED])
    paths = [f"{SYNSETS[class_rank[i]]}/picture_{i:04d}.png" for i in range(images)]
    paths[21] = f"{SYNSETS[1]}/picture_0001.png"  # a name that two folders have
    pictures = random.integers(0, 256, (images, 4, 4, 3), dtype=np.uint8).repeat(8, 1).repeat(8, 2)
    return Synthetic(root, model, dataset, maps, ids, np.array(CLASSES)[class_rank], paths, pictures, kept, sample)


def _publish(made: Synthetic, stage: str) -> publish.Publication:
    return publish.Publication(made.root, made.run, stage, "all", "fingerprint")


def _index(made: Synthetic) -> None:
    total = len(made.paths)
    rank = [CLASSES.index(c) for c in made.class_index]
    rejected = [i == 5 for i in range(total)]
    with _publish(made, "index") as out:
        for table, columns in {
            schema.DATASETS: {
                "dataset": made.dataset, "source": "folder:pictures", "root": "pictures", "images": total,
                "rejected": 1, "digest": "0" * 64,
            },
            schema.CLASSES: {
                "dataset": made.dataset, "class_index": list(CLASSES), "synset": list(SYNSETS), "label": list(LABELS),
            },
            schema.IMAGES: {
                "dataset": made.dataset, "image_id": np.arange(total), "position": np.arange(total),
                "path": made.paths, "label": [LABELS[r] for r in rank], "class_index": made.class_index,
                "synset": [SYNSETS[r] for r in rank], "width": [None if r else SIZE for r in rejected],
                "height": [None if r else SIZE for r in rejected], "sha256": [f"{i:064x}" for i in range(total)],
                "status": ["rejected" if r else "accepted" for r in rejected],
                "reason": [REJECTED[5] if r else None for r in rejected], "source_file": [None] * total,
                "offset": [None] * total, "length": np.full(total, 100),
            },
        }.items():  # fmt: skip
            parquet.write_columns(out.path(layout.dataset_table(made.dataset, table.name)), table, columns)
        out.commit({
            "config": "", "dataset": made.dataset, "digest": "0" * 64, "listing": "", "model": made.model,
            "weights": "0" * 64,
        })  # fmt: skip


def _fold(made: Synthetic) -> None:
    names = {"model": made.model, "dataset": made.dataset}
    with _publish(made, "fold") as out:
        tables = _description(made, names)
        for table, columns in tables.items():
            parquet.write_columns(out.path(layout.table(made.run, table.name)), table, columns)
        _fold_units(made, out, names)
        _write_codes(made, out)
        out.path(layout.config(made.run)).write_text('[compute]\nprecision = "float32"\n\n[scan]\nborder = 0\n')
        out.commit()


def _description(made: Synthetic, names: dict[str, str]) -> dict[schema.Table, dict[str, Any]]:
    preprocessing = {"height": SIZE, "width": SIZE}
    return {
        schema.MODELS: {
            "model": made.model, "source": "python:toy:make", "weights": "DEFAULT", "digest": "0" * 64,
            "label_space": made.model, "input_height": SIZE, "input_width": SIZE,
            "preprocessing": json.dumps(preprocessing),
        },
        schema.RUNS: {"run": made.run, **names, "fingerprint": "fingerprint"},
        schema.LAYERS: names | {
            "layer_index": list(range(len(LAYERS))), "layer": [x.name for x in LAYERS], "op": [x.op for x in LAYERS],
            "channels": [x.channels for x in LAYERS], "height": [x.side for x in LAYERS],
            "width": [x.side for x in LAYERS], "spatial": [True] * len(LAYERS), "signed": [x.signed for x in LAYERS],
            "upper_bound": [6.0, None, None][: len(LAYERS)], "rf_size": [8, 16, None][: len(LAYERS)],
            "rf_stride": [4, 8, None][: len(LAYERS)], "rf_offset": [-2, -4, None][: len(LAYERS)],
            "rf_global": [False, False, True][: len(LAYERS)], "rf_gated": [False] * len(LAYERS),
        },
        schema.EDGES: names | {"source": [x.name for x in LAYERS[:-1]], "target": [x.name for x in LAYERS[1:]]},
        schema.REJECTED: names | {"image_id": [11], "reason": [REJECTED[11]]},
    }  # fmt: skip


def _fold_units(made: Synthetic, out: publish.Publication, names: dict[str, str]) -> None:
    units, examples, stats, neighbors, by_image = [], [], [], [], []
    for layer in LAYERS:
        named = names | {"layer": layer.name}
        tail = _rows([_tail_of(made, layer, c) for c in range(layer.channels)])
        parquet.write_columns(out.path(layout.tail_by_unit(made.run, layer.name)), schema.TAIL, named | tail)
        by_image.append(parquet.to_arrow(schema.TAIL, named | tail))
        units.append(parquet.to_arrow(schema.UNITS, named | _units_of(made, layer)))
        for direction in ("highest", "lowest")[: 1 + layer.signed]:
            rows = _rows([_examples_of(made, layer, c, direction) for c in range(layer.channels)])
            examples.append(parquet.to_arrow(schema.TOP_EXAMPLES, named | rows | {"direction": direction}))
        rows = _rows([_class_stats_of(made, layer, c) for c in range(layer.channels)])
        stats.append(parquet.to_arrow(schema.CLASS_STATS, named | rows))
        rows = _rows([_neighbors_of(made, layer, c) for c in range(layer.channels)])
        neighbors.append(parquet.to_arrow(schema.NEIGHBORS, named | rows | {"other_layer": layer.name}))
    for table, pieces in (
        (schema.UNITS, units), (schema.TOP_EXAMPLES, examples), (schema.CLASS_STATS, stats),
        (schema.NEIGHBORS, neighbors), (schema.CONNECTIONS, [_connections(names)]),
    ):  # fmt: skip
        parquet.write(out.path(layout.table(made.run, table.name)), table, _concat(pieces))
    by_class = _concat(stats)
    by_class = by_class.take(np.argsort(by_class["class_index"].to_numpy(), kind="stable"))
    parquet.write(out.path(layout.class_stats_by_class(made.run)), schema.CLASS_STATS, by_class)
    merged = _concat(by_image)
    merged = merged.take(np.argsort(merged["image_id"].to_numpy(), kind="stable"))
    parquet.write(out.path(layout.tail_by_image(made.run, 0)), schema.TAIL, merged)


def _concat(pieces: list[Any]) -> Any:
    import pyarrow as pa

    return pa.concat_tables(pieces).unify_dictionaries()


def _rows(pieces: list[dict[str, Any]]) -> dict[str, Any]:
    return {name: np.concatenate([p[name] for p in pieces]) for name in pieces[0]}


def _order(made: Synthetic, layer: SyntheticLayer, channel: int) -> NDArray[np.int64]:
    """Accepted ids by (max desc, mean desc, id), zeros of non-negative layers left out."""
    value, mean = made.maxima(layer.name)[:, channel], made.means(layer.name)[:, channel]
    ids = [i for i in made.ids if layer.signed or value[i] > 0]
    return np.array(sorted(ids, key=lambda i: (-value[i], -mean[i], i)), np.int64)


def _tail_of(made: Synthetic, layer: SyntheticLayer, channel: int) -> dict[str, Any]:
    value = made.maxima(layer.name)[:, channel]
    ids = _order(made, layer, channel)
    p = np.array([(value[made.ids] >= value[i]).sum() / len(made.ids) for i in ids])
    kept = (np.arange(len(ids)) < 20) | (p <= 0.01)
    return _placed(made, layer, channel, ids[kept], value) | {"tail_p": p[kept]}


def _placed(
    made: Synthetic, layer: SyntheticLayer, channel: int, ids: NDArray[np.int64], value: NDArray[np.float32],
    lowest: bool = False,
) -> dict[str, Any]:  # fmt: skip
    maps = made.maps[layer.name][ids, channel].reshape(len(ids), layer.side**2)
    place = (maps.argmin(1) if lowest else maps.argmax(1)) if len(ids) else np.zeros(0, np.int64)
    return {
        "channel": np.full(len(ids), channel), "image_id": ids, "value": value[ids], "y": place // layer.side,
        "x": place % layer.side,
    }  # fmt: skip


def _examples_of(made: Synthetic, layer: SyntheticLayer, channel: int, direction: str) -> dict[str, Any]:
    value = made.maxima(layer.name)[:, channel]
    ids = _order(made, layer, channel)
    if direction == "lowest":
        value = made.maps[layer.name][:, channel].min((1, 2))
        ids = np.array(sorted(made.ids, key=lambda i: (value[i], i)), np.int64)
    ids = ids[: made.kept]
    rows = _placed(made, layer, channel, ids, value, direction == "lowest")
    y, x = rows["y"] * layer.stride, rows["x"] * layer.stride
    return rows | {
        "rank": np.arange(1, len(ids) + 1), "mean": made.means(layer.name)[ids, channel],
        "box_y0": np.maximum(y - 2, 0), "box_x0": np.maximum(x - 2, 0),
        "box_y1": np.minimum(y + layer.stride + 2, SIZE), "box_x1": np.minimum(x + layer.stride + 2, SIZE),
    }  # fmt: skip


def _units_of(made: Synthetic, layer: SyntheticLayer) -> dict[str, Any]:
    maps = made.maps[layer.name][made.ids].astype(np.float64)
    top = made.maxima(layer.name)[made.ids].astype(np.float64)
    quantiles = {f"q{q}": np.quantile(top, float(f"0.{q}"), axis=0, method="inverted_cdf") for q in (50, 90, 99, 999)}
    dead = top.max(0) <= 0 if not layer.signed else top.max(0) == top.min(0)
    return quantiles | {
        "channel": np.arange(layer.channels), "mean": maps.mean((0, 2, 3)), "variance": maps.var((0, 2, 3)),
        "minimum": maps.min((0, 2, 3)), "maximum": top.max(0), "fraction_active": (maps > 0).mean((0, 2, 3)),
        "max_mean": top.mean(0), "max_sd": top.std(0), "q9999": top.max(0),
        "saturated": np.full(layer.channels, np.nan) if layer.signed else (top >= 6).mean(0),
        "selectivity": np.full(layer.channels, np.nan if layer.signed else 0.25),
        "top_class": np.full(layer.channels, CLASSES[1]), "dead": dead,
    }  # fmt: skip


def _class_stats_of(made: Synthetic, layer: SyntheticLayer, channel: int) -> dict[str, Any]:
    value, of_image = made.maxima(layer.name)[made.ids, channel], made.class_index[made.ids]
    means, areas = [], []
    for c in CLASSES:
        inside, rest = value[of_image == c][:, None], value[of_image != c]
        means.append(inside.mean())
        areas.append(((inside > rest) + 0.5 * (inside == rest)).mean())
    return {"channel": np.full(3, channel), "class_index": np.array(CLASSES), "mean_max": np.array(means),
            "auc": np.array(areas)}  # fmt: skip


def connection(source: str, source_channel: int, layer: str, channel: int) -> float:
    """Return the strength with which one unit feeds another, of layers that follow each other; 0 if it does not."""
    places = {one.name: place for place, one in enumerate(LAYERS)}
    if places[layer] != places[source] + 1:
        return 0.0
    return float((source_channel * 5 + channel * 3 + 1) % 7 - 3)


def _connections(names: dict[str, str]) -> pa.Table:
    rows: dict[str, list[Any]] = {f: [] for f in schema.CONNECTIONS.columns if f not in names}
    for before, layer in itertools.pairwise(LAYERS):
        for channel in range(layer.channels):
            all_of = [(s, connection(before.name, s, layer.name, channel)) for s in range(before.channels)]
            kept = sorted((x for x in all_of if x[1]), key=lambda x: (-abs(x[1]), x[0]))
            for rank, (source, strength) in enumerate(kept, 1):
                row = (layer.name, channel, rank, before.name, source, strength, strength / 2, "1x1 conv")
                for values, value in zip(rows.values(), row, strict=True):
                    values.append(value)
    return parquet.to_arrow(
        schema.CONNECTIONS, rows | {name: [text] * len(rows["rank"]) for name, text in names.items()}
    )


def _neighbors_of(made: Synthetic, layer: SyntheticLayer, channel: int) -> dict[str, Any]:
    top = made.maxima(layer.name)[made.ids].astype(np.float64)
    live = [c for c in range(layer.channels) if top[:, c].std() > 0 and c != channel]
    if top[:, channel].std() == 0:
        live = []
    found = sorted((-np.corrcoef(top[:, channel], top[:, c])[0, 1], c) for c in live)[:3]
    return {
        "channel": np.full(len(found), channel), "rank": np.arange(1, len(found) + 1),
        "other_channel": np.array([c for _, c in found], np.int64), "correlation": np.array([-r for r, _ in found]),
    }  # fmt: skip


def _write_codes(made: Synthetic, out: publish.Publication) -> None:
    books: dict[str, Array] = {}
    compared: dict[str, Array] = {}
    places: dict[str, Array] = {}
    samples: list[NDArray[np.uint8]] = []
    whole: dict[str, list[NDArray[np.uint8]]] = {"max": [], "mean": []}
    for layer in LAYERS:
        dense = {}
        for name, values in (("max", made.maxima(layer.name)), ("mean", made.means(layer.name))):
            resolution = codes.MAX if name == "max" else codes.MEAN
            edges = codes.edges(values[made.ids[:: made.sample]], layer.signed, resolution)
            coded = codes.encode(values[made.ids], edges)
            counts, means = codes.counts_and_means(values[made.ids], coded)
            for key, array in (("edges", edges), ("counts", counts), ("means", means)):
                books[f"{layer.name}/{name}/{key}"] = Array(array)
            full = np.zeros(values.shape, np.uint8)
            full[made.ids] = coded
            whole[name].append(full)
            dense[name] = Array(full.T, (1, layout.BLOCK), "huffman")
            if name == "max":
                found = components.principal(_correlation(means[np.arange(layer.channels), coded.astype(int)]))
                near, length = components.coordinates(full, codes.standardized(counts, means), found)
                samples.append(coded[codes.sample(len(coded))].T)
                compared |= {f"{layer.name}/directions": Array(found.directions)}
                compared |= {f"{layer.name}/deviations": Array(found.deviations)}
                places |= {f"{layer.name}/coordinates": Array(near), f"{layer.name}/lengths": Array(length)}
        hdf5.write(out.path(layout.codes_by_unit(made.run, layer.name)), dense)
    hdf5.write(out.path(layout.array(made.run, "codes")), books)
    blocks = {name: Array(np.concatenate(parts, 1), None, "huffman") for name, parts in whole.items()}
    hdf5.write(out.path(layout.codes_by_image(made.run, 0)), blocks)
    hdf5.write(out.path(layout.coordinates(made.run, 0)), places)
    hdf5.write(out.path(layout.array(made.run, "components")), compared)
    hdf5.write(out.path(layout.array(made.run, "sample")), {"max": Array(np.concatenate(samples))})


def _correlation(values: NDArray[np.float32]) -> NDArray[np.float64]:
    """0 for a unit that never varies."""
    with np.errstate(invalid="ignore"):
        return np.nan_to_num(np.corrcoef(values.T.astype(np.float64)))


def _examples(made: Synthetic) -> None:
    arrays: dict[str, Array] = {}
    shown: set[int] = set()
    for layer in LAYERS:
        full = np.zeros((layer.channels, COUNT, layer.side, layer.side), np.uint8)
        for channel in range(layer.channels):
            for direction in ("highest", "lowest")[: 1 + layer.signed]:
                shown.update(_examples_of(made, layer, channel, direction)["image_id"][:COUNT].tolist())
            for rank, image_id in enumerate(_order(made, layer, channel)[:COUNT]):
                grid = np.maximum(made.maps[layer.name][image_id, channel], 0)
                full[channel, rank] = np.round(grid / max(grid.max(), 1e-6) * 255)
        arrays[f"maps/{layer.name}"] = Array(full)
    jpegs = [_jpeg(made.pictures[i]) for i in sorted(shown)]
    arrays |= {
        "image_ids": Array(np.array(sorted(shown), np.int64)),
        "offsets": Array(np.cumsum([0, *map(len, jpegs)]).astype(np.int64)),
        "jpeg": Array(np.frombuffer(b"".join(jpegs), np.uint8)),
    }
    with _publish(made, "examples") as out:
        hdf5.write(out.path(layout.example_images(made.run)), arrays)
        out.commit()


def _jpeg(pixels: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def visualization(channel: int, negative: bool) -> NDArray[np.uint8]:
    """The picture the store keeps for a channel of `block.0.add`."""
    return np.full((16, 16, 3), 10 * channel + 100 * negative, np.uint8)


def _visualize(made: Synthetic) -> None:
    layer = LAYERS[1]
    pairs = [(c, d) for c in range(layer.channels) for d in ("positive", "negative")]
    file = layout.visualizations(made.run, layer.name)
    count = len(pairs)
    columns: dict[str, Any] = {
        "model": made.model, "dataset": made.dataset, "layer": layer.name, "channel": [c for c, _ in pairs],
        "kind": "channel", "direction": [d for _, d in pairs], "repeat": [0] * count, "objective": "channel",
        "size": [16] * count, "steps": [8] * count, "input": "canvas", "value": np.linspace(1, 2, count),
        "value_transformed": np.linspace(1, 2, count),
        "value_vs_best_example": np.full(count, 1.25), "rank_in_layer": [1] * count, "beats_median": [True] * count,
        "h5_file": file, "h5_dataset": "images", "h5_index": list(range(count)),
    }  # fmt: skip
    with _publish(made, "visualize") as out:
        pictures = np.stack([visualization(c, d == "negative") for c, d in pairs])
        hdf5.write(out.path(file), {"images": Array(pictures)})
        parquet.write_columns(
            out.path(f"runs/{made.run}/tables/visualizations/{layer.name}.parquet"), schema.VISUALIZATIONS, columns
        )
        out.commit()
