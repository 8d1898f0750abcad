"""Write a store of any size from invented activations, with the pipeline's own fold and the store's own code.

    python benchmarks/make_store.py STORE --images 1281167 --units 4096
    python benchmarks/make_store.py STORE --images 16384 --resnet50

Only the scan is replaced: `Invented` generates from seeds, one layer at a time, the data that the fold reads from the
scan's partials. Activations are heavy-tailed and two thirds are zeros. Units prefer a few of the classes; some units
are dead or reach the clip. Every eighth layer is signed. Latent factors make units and images similar to each other.
Run it again to resume.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from tqdm import tqdm

from pipeline.config import Config, DatasetConfig, ModelConfig, fingerprinted
from pipeline.graph import Layer
from pipeline.graph.layer import Layout
from pipeline.job import Shard
from pipeline.scan.batch_statistics import UnitIndex
from pipeline.stages import fold
from pipeline.statistics.moments import Pair
from store import commits, layout, parquet, publish, schema
from store.commits import Record
from store.publish import Publication

FACTORS = 24  # latent factors, shared by all units
SIDE = 7  # height and width of every map
ROWS = 65_536  # images that are computed at a time
MODEL, DATASET = "invented", "invented"
RESNET50 = [64, *[64, 64, 256] * 3, *[128, 128, 512] * 4, *[256, 256, 1024] * 6, *[512, 512, 2048] * 3]

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Size:
    images: int
    channels: tuple[int, ...]  # of each layer
    classes: int = 1000
    seed: int = 0


@dataclass(frozen=True)
class Values:
    """The per-image maxima and means of one layer over all images, float32 [N, C]."""

    max: Floats
    mean: Floats


def classes_of(size: Size) -> NDArray[np.int64]:
    """Return the class of each image. Classes are contiguous, as in sorted folders."""
    return np.arange(size.images) * size.classes // size.images


@functools.lru_cache(1)
def _factors(size: Size) -> Floats:
    rng = np.random.default_rng([size.seed, 1])
    of_class = rng.standard_normal((size.classes, FACTORS), np.float32)
    return 0.7 * of_class[classes_of(size)] + 0.7 * rng.standard_normal((size.images, FACTORS), np.float32)


def layers_of(size: Size) -> tuple[Layer, ...]:
    return tuple(
        Layer(
            index=i, name=f"layer{i:02d}", node=f"layer{i:02d}", op="add" if i % 8 == 7 else "relu6", channels=channels,
            height=SIDE, width=SIDE, signed=i % 8 == 7, upper_bound=None if i % 8 == 7 else 6.0, rf_size=64,
            rf_stride=32, rf_offset=-16, rf_global=False, rf_gated=False, layout=Layout(1, "nchw"),
        )
        for i, channels in enumerate(size.channels)
    )  # fmt: skip


def values_of(size: Size, layer: Layer) -> Values:
    """Return a layer's per-image maxima and means. The same size gives the same numbers in any process."""
    rng = np.random.default_rng([size.seed, 2, layer.index])
    C = layer.channels
    weights = rng.standard_normal((FACTORS, C), np.float32)
    weights /= np.linalg.norm(weights, axis=0)
    noise, power = rng.uniform(0.4, 1.2, C).astype(np.float32), rng.uniform(1, 2, C).astype(np.float32)
    zero = rng.beta(6, 3, C)  # share of zeros: two thirds on average
    bounds = np.searchsorted(classes_of(size), np.arange(size.classes + 1))
    favourites = rng.integers(0, size.classes, (3, C)), rng.uniform(1, 3, (3, C)).astype(np.float32)
    factors = _factors(size)
    values, means = np.empty((size.images, C), np.float32), np.empty((size.images, C), np.float32)
    for first in range(0, size.images, ROWS):
        rows = slice(first, min(first + ROWS, size.images))
        values[rows] = factors[rows] @ weights + noise * rng.standard_normal((rows.stop - first, C), np.float32)
    for favourite, more in zip(*favourites, strict=True):
        for channel in range(C):
            values[bounds[favourite[channel]] : bounds[favourite[channel] + 1], channel] += more[channel]
    sample = values[:: max(size.images // 20_000, 1)]
    low = np.array([np.quantile(sample[:, c], zero[c]) for c in range(C)], np.float32)
    dead = rng.random(C) < 0.02
    for first in range(0, size.images, ROWS):
        rows = slice(first, min(first + ROWS, size.images))
        block, share = values[rows], rng.random((rows.stop - first, C), np.float32)
        if layer.signed:
            values[rows] = np.sinh(block)
            means[rows] = 0.5 * values[rows] - share
        else:
            values[rows] = np.where(dead, 0, np.minimum(np.maximum(block - low, 0) ** power, 6))
            means[rows] = values[rows] * (0.05 + 0.25 * share)
    return Values(values, means)


class Invented:
    """Stands in for the scan's partials (pipeline.stages.partials.ScanPartials), as far as a fold reads them."""

    rejected: tuple[tuple[int, str], ...] = ()

    def __init__(self, size: Size) -> None:
        self.size, self.ids = size, np.arange(size.images)
        self._layers = {layer.name: layer for layer in layers_of(size)}
        self._units = UnitIndex(tuple(self._layers.values()))
        self._current: tuple[str, Values] | None = None

    def values(self, layer: str) -> Values:
        if self._current is None or self._current[0] != layer:
            self._current = None
            self._current = (layer, values_of(self.size, self._layers[layer]))
        return self._current[1]

    def columns(self, layer: str, names: Sequence[str], channels: slice) -> dict[str, NDArray[Any]]:
        return {name: self._column(layer, name, channels) for name in names}

    def _column(self, layer: str, name: str, channels: slice) -> NDArray[Any]:
        values = self.values(layer)
        if name in ("max", "mean"):
            return np.ascontiguousarray(getattr(values, name)[:, channels])
        if name == "min":
            return values.mean[:, channels] - np.abs(values.max[:, channels]) - 0.25
        units = np.arange(*channels.indices(self._layers[layer].channels))
        return ((self.ids[:, None] * 2_654_435_761 + units * 40_503) % (SIDE * SIDE)).astype(np.uint16)

    def rows(self, layer: str, name: str) -> Iterator[Floats]:
        column = getattr(self.values(layer), name)
        return (column[first : first + ROWS] for first in range(0, self.size.images, ROWS))

    def moments(self, units: slice) -> tuple[Pair, Pair, NDArray[np.int64], Floats]:
        """Return the moments that result if every position of a map has the image's mean, since no map exists."""
        layer_index = int(np.searchsorted(self._units.offsets, units.start, side="right")) - 1
        start = int(self._units.offsets[layer_index])
        layer = self._units.layers[layer_index]
        mean = self._column(layer.name, "mean", slice(units.start - start, units.stop - start))
        positions, zero = SIDE * SIDE, np.zeros(mean.shape[1])
        total = Pair(mean.sum(0, np.float64) * positions, zero)
        square = Pair((mean.astype(np.float64) ** 2).sum(0) * positions, zero)
        low = mean.min(0) - 8 if layer.signed else np.zeros(mean.shape[1], np.float32)
        return total, square, (mean > 0).sum(0) * positions, low.astype(np.float32)

    def predictions(self) -> None:
        return None


@dataclass
class InventedJob:
    """Stands in for the job (pipeline.job.Job), as far as a fold uses it: its spec, dataset and store."""

    root: Path
    size: Size

    def __post_init__(self) -> None:
        layers = layers_of(self.size)
        model, dataset = ModelConfig("python:invented:activations", name=MODEL), DatasetConfig("folder:x", name=DATASET)
        config = Config(model, dataset)
        edges = [(a.name, b.name) for a, b in itertools.pairwise(layers)]
        pixels = SimpleNamespace(height=224, width=224, as_dict=lambda: {"height": 224, "width": 224})
        self.spec = SimpleNamespace(
            config=config, layers=layers, units=UnitIndex(layers), keys=fingerprinted(config, "cpu"),
            fingerprint=hashlib.sha256(repr(self.size).encode()).hexdigest(),
            model=SimpleNamespace(
                name=MODEL, source="python:invented:activations", weights="DEFAULT", digest="0" * 64,
                label_space=MODEL, labels=None, preprocess=pixels,
                graph=SimpleNamespace(edges=lambda layers: edges),
            ),
        )  # fmt: skip
        self.dataset, self.store = InventedDataset(self.root), InventedStore(self.root, self.spec.fingerprint)


@dataclass
class InventedDataset:
    root: Path
    name: str = DATASET

    @functools.cached_property
    def images(self) -> pa.Table:
        return parquet.read(self.root / layout.dataset_table(self.name, "images"), ["image_id", "class_index"])


@dataclass
class InventedStore:
    root: Path
    fingerprint: str
    run: str = layout.run_name(MODEL, DATASET)

    def publication(self, stage: str, shard: str) -> Publication:
        return Publication(self.root, self.run, stage, shard, self.fingerprint)


def _index(job: InventedJob) -> None:
    N, K, of_image = job.size.images, job.size.classes, classes_of(job.size)
    synsets, labels = [f"n{i:08d}" for i in range(K)], [f"class {i}" for i in range(K)]
    digits = np.random.default_rng(job.size.seed).bytes(32 * N).hex()
    with job.store.publication("index", "index") as out:
        for table, columns in {
            schema.DATASETS: {
                "dataset": DATASET, "source": "folder:invented", "root": "invented", "images": N, "rejected": 0,
                "digest": "0" * 64,
            },
            schema.CLASSES: {
                "dataset": DATASET, "class_index": np.arange(K), "synset": synsets, "label": labels,
            },
            schema.IMAGES: {
                "dataset": DATASET, "image_id": np.arange(N), "position": np.arange(N),
                "path": [f"{synsets[c]}/{synsets[c]}_{i}.JPEG" for i, c in enumerate(of_image)],
                "label": [labels[c] for c in of_image], "class_index": of_image,
                "synset": [synsets[c] for c in of_image], "width": np.full(N, 500), "height": np.full(N, 375),
                "sha256": [digits[64 * i : 64 * i + 64] for i in range(N)], "status": ["accepted"] * N,
                "reason": [None] * N, "source_file": [None] * N, "offset": [None] * N, "length": np.full(N, 110_000),
            },
        }.items():  # fmt: skip
            parquet.write_columns(out.path(layout.dataset_table(DATASET, table.name)), table, columns)
        out.commit({"dataset": DATASET, "images": N, "rejected": 0, "size": json.dumps(job.size.__dict__)})


def _shard(task: tuple[Path, Size, Shard]) -> Record:
    root, size, shard = task
    return fold.fold_shard(InventedJob(root, size), _partials(size), shard, lambda done: None)  # type: ignore[arg-type]


@functools.lru_cache(1)
def _partials(size: Size) -> Invented:
    return Invented(size)


def make(root: Path, size: Size, workers: int = 1, say: Callable[[str], None] = lambda text: None) -> None:
    """Write the store, or the shards of it that are missing."""
    publish.ensure_store(root)
    job = InventedJob(root, size)
    if commits.find_record(root, job.store.run, "index", "index") is None:
        _index(job)
    for phase in fold.STAGE.phases(job):  # type: ignore[arg-type]
        todo = [(root, size, s) for s in phase if commits.find_record(root, job.store.run, "fold", s.name) is None]
        with multiprocessing.get_context("spawn").Pool(min(workers, max(len(todo), 1))) as pool:
            for record in tqdm(pool.imap_unordered(_shard, todo), total=len(todo), desc="fold", mininterval=5):
                say(record.shard)
    publish.write_manifest(root)


def size_of(root: Path) -> Size:
    """Return the size that a store was made with. Raises click.UsageError if this program did not make it."""
    record = commits.find_record(root, layout.run_name(MODEL, DATASET), "index", "index")
    if record is None:
        raise click.UsageError(f"{root} was not made by make_store.py")
    body = json.loads(record.facts["size"])
    return Size(**body | {"channels": tuple(body["channels"])})


@click.command(help=__doc__)
@click.argument("store", type=click.Path(path_type=Path))
@click.option("--images", default=100_000, show_default=True)
@click.option("--units", default=1024, show_default=True, help="Number of units, in layers of --width units.")
@click.option("--width", default=128, show_default=True)
@click.option("--resnet50", is_flag=True, help="Use the 49 layers and 22,720 units of ResNet-50 instead.")
@click.option("--classes", default=1000, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--workers", default=1, show_default=True)
def main(
    store: Path, images: int, units: int, width: int, resnet50: bool, classes: int, seed: int, workers: int
) -> None:
    channels = RESNET50 if resnet50 else [width] * (units // width)
    make(store, Size(images, tuple(channels), min(classes, images), seed), workers)
    total = sum(f.stat().st_size for f in store.rglob("*") if f.is_file())
    click.echo(f"{store}: {images:,} images x {sum(channels):,} units, {total / 2**30:.2f} GiB")


if __name__ == "__main__":
    main()
