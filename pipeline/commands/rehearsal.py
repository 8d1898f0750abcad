"""Measure how fast this machine works through the parts of a job, for `plan`. Nothing of it is kept.

Reading and the network are measured on the job's own pictures. Feature visualization is measured on three of its
layers. The cost of the fold and of the examples does not depend on what the network computes. It is therefore measured
on small real runs: two small networks, a narrow and a wide one, run on pictures of noise in a temporary folder, with
different numbers of pictures and classes.
"""

from __future__ import annotations

import contextlib
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from pipeline import driver
from pipeline.config import ComputeConfig, DatasetConfig, ModelConfig
from pipeline.data.decode import BadImageError, open_image
from pipeline.data.loading import batches
from pipeline.featurevis import Renderer, Settings, objectives
from pipeline.graph import Layer
from pipeline.job import Job
from pipeline.runtime.allocator import give_back
from pipeline.stages import STAGES, examples, fold, visualize
from pipeline.stages.scan import Rows
from pipeline.stages.work_sizes import channels_together
from store import hdf5, publish

SIDE, PAIRS = 14, 3  # of the small runs' networks: PAIRS times a convolution and a ReLU, with maps of SIDE x SIDE
NARROW, WIDE = 32, 256  # their channels
# The positions that are kept of a map, on average over the layers: two of them have a single one.
SHARE = SIDE * SIDE * 2 * PAIRS / (2 * PAIRS + 2)
FEW, MANY = 48, 512  # pictures of the small runs
ROUNDS = 4  # of scanned batches on every thread
STEPS = 2  # of a visualization, of each kind, that are measured after one to warm up


@dataclass(frozen=True)
class Seconds:
    """An estimated time: the lowest and the highest number of seconds that fit the measurements."""

    low: float
    high: float

    def __add__(self, other: Seconds) -> Seconds:
        return Seconds(self.low + other.low, self.high + other.high)

    def times(self, factor: float) -> Seconds:
        return Seconds(self.low * factor, self.high * factor)

    @property
    def middle(self) -> float:
        return (self.low + self.high) / 2


NOTHING = Seconds(0, 0)


def _of(samples: Sequence[float]) -> Seconds:
    """Return the range of the samples without the lowest and the highest quarter."""
    ordered = sorted(samples)
    cut = len(ordered) // 4
    kept = ordered[cut : len(ordered) - cut]
    return Seconds(kept[0], kept[-1])


def of_picture(job: Job) -> tuple[Seconds, float]:
    """Measure a picture of a scan, from its file to the partial, and the preparation of the network.

    Pictures are read, decoded and measured as the scan does it, side by side on all threads.
    """
    entries, size, streams = job.dataset.entries, job.spec.config.scan.batch_size, job.runtime.streams
    chosen = np.linspace(0, len(entries) - 1, min(len(entries), size * streams * (ROUNDS + 1))).astype(np.int64)
    _ = job.spec.units  # opens the network, which is no part of the scan
    started = time.perf_counter()
    _ = job.runtime.measurer
    prepared = time.perf_counter() - started

    def read(number: int) -> bytes:
        try:
            return job.dataset.source.read(entries[number])
        except OSError:
            return b""  # counts as a picture that cannot be decoded

    ids = [int(i) for i in chosen]
    ids *= -(-size * streams * 2 // len(ids))  # at least a round to warm up, and one to measure
    rows = Rows(job.spec.units, len(ids))
    ends = []
    started = time.perf_counter()
    with ThreadPoolExecutor(max(job.runtime.threads, 1)) as decoders:
        loaded = batches(ids, read, job.spec.model.preprocess.pixels, size, decoders)
        for batch, found in job.runtime.measured_batches(loaded):
            if found is not None:
                rows.add(batch, found)
            ends.append(time.perf_counter())
    ready = ends[streams - 1]
    rounds = [b - a for a, b in itertools.pairwise(ends[streams - 1 :: streams])]
    prepared += max(ready - started - statistics.median(rounds), 0.0)
    with tempfile.TemporaryDirectory(prefix="unitscope-plan-") as folder:
        started = time.perf_counter()
        hdf5.write(Path(folder) / "partial.h5", rows.arrays(channels_together(len(entries))))
        written = (time.perf_counter() - started) / len(ids)
    return _of(rounds).times(1 / (size * streams)) + Seconds(written, written), prepared


def of_jpeg(job: Job) -> Seconds:
    """Measure the encoding of a picture for the stage `examples`."""
    preprocess = job.spec.model.preprocess
    pixels = np.zeros((preprocess.channels, preprocess.height, preprocess.width), np.uint8)
    for entry in job.dataset.entries[:8]:
        with contextlib.suppress(BadImageError, OSError):
            pixels = preprocess.pixels(open_image(job.dataset.source.read(entry)))
            break
    return _of(_repeated(lambda: examples.encoded(pixels, job.spec.config.examples.size), 8))


def _repeated(work: Callable[[], Any], times: int) -> list[float]:
    ends = [time.perf_counter()]
    for _ in range(times + 1):
        work()
        ends.append(time.perf_counter())
    return [b - a for a, b in itertools.pairwise(ends[1:])]


@dataclass(frozen=True)
class Costs:
    """The measured costs of the fold and of the stage `examples`, in seconds, without the forward pass.

    The fold costs `layer` per layer, `unit` per unit, `value` per unit and image, and `row` per unit and class. The
    examples cost `start_of_examples` once, `map` per layer and image, and `position` per stored position of a map.
    `noise` is the share by which two equal runs differed.
    """

    layer: float
    unit: float
    value: float
    row: float
    start_of_examples: float
    map: float
    position: float
    noise: float

    def fold(self, layers: int, units: int, images: int, classes: int) -> Seconds:
        return self._about(layers * self.layer + units * (self.unit + self.value * images + self.row * classes))

    def examples(self, layers: int, images: int, positions: int) -> Seconds:
        return self._about(self.start_of_examples + layers * images * self.map + positions * self.position)

    def _about(self, seconds: float) -> Seconds:
        return Seconds(seconds * (1 - self.noise), seconds * (1 + self.noise))


def narrow() -> tuple[nn.Module, dict[str, Any]]:
    """Make the narrow network of the small runs, as a `python:` source."""
    return _network(NARROW)


def wide() -> tuple[nn.Module, dict[str, Any]]:
    """Make the wide network of the small runs, as a `python:` source."""
    return _network(WIDE)


def _network(channels: int) -> tuple[nn.Module, dict[str, Any]]:
    torch.manual_seed(0)
    widths = [3, *[channels] * PAIRS]
    pairs = [m for a, b in itertools.pairwise(widths) for m in (nn.Conv2d(a, b, 1), nn.ReLU())]
    made = nn.Sequential(*pairs, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return made, {"height": SIDE, "width": SIDE, "resize": SIDE, "mean": (0.5,) * 3, "std": (0.25,) * 3}


@dataclass(frozen=True)
class _SmallRun:
    fold: float
    examples: float
    layers: int
    units: int


def of_fold_and_examples(job: Job, classes: int) -> Costs:
    """Run both on noise: first to warm up, then with more channels, more pictures and more classes, one by one."""
    split = max(min(classes, MANY), 1)
    sizes = [(narrow, FEW, 1), (narrow, FEW, 1), (wide, FEW, 1), (wide, FEW, 1), (wide, MANY, 1), (wide, MANY, split)]
    with tempfile.TemporaryDirectory(prefix="unitscope-plan-") as folder:
        _, small, again, few, many, divided = (
            _small_run(job, Path(folder) / str(i), *size) for i, size in enumerate(sizes)
        )
    noise = abs(again.fold - few.fold) / (again.fold + few.fold)
    units = few.units - small.units
    unit = max(few.fold - small.fold, 0.0) / units
    value = max(many.fold - few.fold, 0.0) / (MANY - FEW) / few.units
    row = max(divided.fold - many.fold, 0.0) / split / few.units
    kept = min(job.spec.config.examples.count, FEW) * SHARE
    position = max(few.examples - small.examples, 0.0) / units / kept
    map_ = max(many.examples - few.examples, 0.0) / (MANY - FEW) / few.layers
    rest = small.examples - position * small.units * kept - map_ * FEW * small.layers
    return Costs(
        layer=max(small.fold - unit * small.units, 0.0) / small.layers,
        unit=max(unit - value * FEW, 0.0),
        value=value,
        row=row,
        start_of_examples=max(rest, 0.0),
        map=map_,
        position=position,
        noise=noise,
    )


def _small_run(job: Job, folder: Path, made: Callable[[], Any], images: int, classes: int) -> _SmallRun:
    """Run all stages before the visualizations on pictures of noise."""
    rng = np.random.default_rng(0)
    for number in range(images):
        target = folder / "pictures" / f"{number % classes:04d}" / f"{number:05d}.ppm"
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8)).save(target)
    config = job.spec.config
    changed = replace(
        config,
        model=ModelConfig(f"python:{__name__}:{made.__name__}", layers="all"),
        dataset=DatasetConfig(f"folder:{folder / 'pictures'}", "noise"),
        compute=ComputeConfig("cpu", threads=config.compute.threads),
    )
    give_back()  # what was measured before; a login node may have little memory
    small = Job(changed, folder / "store", progress=False)
    publish.ensure_store(small.store.root)
    seconds = {}
    for stage in STAGES[: STAGES.index(visualize.STAGE)]:
        started = time.perf_counter()
        driver.run_stage(small, stage)
        seconds[stage.name] = time.perf_counter() - started
    layers, units = len(small.spec.layers), int(small.spec.units.offsets[-1])
    return _SmallRun(seconds[fold.STAGE.name], seconds[examples.STAGE.name], layers, units)


@dataclass(frozen=True)
class Rendering:
    """Seconds of the visualizations of a layer.

    `picture`: of a picture in a batch as large as most, with all its steps and what follows them. `start`: of preparing
    the network for a shard. `cost`: of the layer, from its graph.
    """

    cost: int
    picture: Seconds
    start: float


def of_layers(job: Job) -> list[Rendering]:
    """Measure the cheapest, the middle and the dearest visualized layer, with a batch on every thread at once."""
    layers = sorted(job.spec.visualized, key=job.spec.model.graph.cost)
    picked = {layer.name: layer for layer in (layers[0], layers[len(layers) // 2], layers[-1])}
    return [_rendered(job, layer) for layer in picked.values()]


def _rendered(job: Job, layer: Layer) -> Rendering:
    batch = max(max(sizes) for of_layer, sizes in visualize.shards_planned(job) if of_layer is layer)
    settings = visualize.settings(job, batch=batch)
    give_back()
    started = time.perf_counter()
    renderer = Renderer(job.spec.model, layer, settings)
    start = time.perf_counter() - started
    first = min(settings.redirected, settings.steps)
    with ThreadPoolExecutor(job.runtime.streams) as pool:
        measured = list(pool.map(lambda stream: _steps(renderer, settings, stream), range(job.runtime.streams)))
    redirected, plain, finish = (_of([s for steps in measured for s in steps[kind]]) for kind in range(3))
    picture = (redirected.times(first) + plain.times(settings.steps - first) + finish).times(1 / batch)
    return Rendering(job.spec.model.graph.cost(layer), picture, start)


def _steps(renderer: Renderer, settings: Settings, stream: int) -> tuple[list[float], list[float], list[float]]:
    """Return the seconds of redirected steps, of plain ones, and of what follows the last, after some to warm up."""
    objective = objectives.channel(renderer.layers[0].name, 0)
    ascent = renderer.begin(objective, [(stream, i) for i in range(settings.batch)])
    redirected = _repeated(ascent.step, STEPS)
    ascent.steps = settings.redirected  # go on as after the last redirected step
    plain = _repeated(ascent.step, STEPS)
    started = time.perf_counter()
    ascent.finished(objective)
    return redirected, plain, [time.perf_counter() - started]


def between(measured: Sequence[Rendering], cost: int) -> Rendering:
    """Estimate the visualizations of a layer of some cost from those that were measured, which rise in cost."""
    costs = [m.cost for m in measured]
    low, high = (np.interp(cost, costs, [getattr(m.picture, end) for m in measured]) for end in ("low", "high"))
    return Rendering(cost, Seconds(float(low), float(high)), float(np.interp(cost, costs, [m.start for m in measured])))


def side_by_side(works: Sequence[Seconds], streams: int) -> Seconds:
    """Return how long works take that are begun in order, each as soon as one of the streams is free."""
    ends: list[list[float]] = []
    for each in ([w.low for w in works], [w.high for w in works]):
        free = [0.0] * streams
        for seconds in each:
            free[free.index(min(free))] += seconds
        ends.append(free)
    return Seconds(max(ends[0]), max(ends[1]))


def classes_of(job: Job) -> int:
    """Return the number of classes of the dataset's pictures, as far as its listing tells."""
    return len({entry.label.index for entry in job.dataset.entries if entry.label is not None})
