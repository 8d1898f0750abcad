"""Plan a run from its config and what the store holds: its shards, bytes and hours."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.data.decode import BadImageError, open_image
from pipeline.data.loading import pad_batch
from pipeline.data.source import Entry
from pipeline.driver import missing_shards
from pipeline.featurevis import Picture, Renderer, memory
from pipeline.job import Job, Stage, Work
from pipeline.runtime.devices import set_up
from pipeline.stages import STAGES, visualize
from store.errors import UsageError

# Measured on EfficientNet-Lite0 and 500 photographs: bytes per image and unit, and further bytes per unit.
STORE_BYTES, STORE_BYTES_OF_UNIT = 4.1, 5_500
PARTIAL_BYTES, PARTIAL_BYTES_OF_SIGNED = 10, 16  # float32 and uint16: max, argmax, mean; min, argmin
SAMPLE = 3  # batches that are measured


@dataclass(frozen=True)
class Rates:
    """Seconds per scanned picture, and per optimization step of one visualization, as measured on this machine."""

    image: float
    render_step: float

    def seconds(self, work: Work) -> float:
        """Return the estimated seconds for some work."""
        return self.image * work.images + self.render_step * work.render_steps


def make_plan(job: Job) -> str:
    """Return the plan as text. It runs a few batches and steps to measure their time, and keeps no results."""
    set_up()
    for stage in STAGES:
        job.store.done(stage.name)  # raises, as `run` would, if the store holds a run with another config
    entries = job.dataset.entries
    images, units = len(entries), int(job.spec.units.offsets[-1])
    rates = _measure(job, entries)
    lines = [
        f"run       {job.store.run}, fingerprint {job.spec.fingerprint[:12]}, on {job.spec.device} "
        f"with {job.runtime.threads} threads, {job.spec.config.compute.workers} worker(s)",
        f"model     {len(job.spec.layers)} layers, {units:,} units; "
        + (f"no predictions: {job.spec.no_predictions}" if job.spec.no_predictions else "predictions recorded"),
        f"dataset   {job.dataset.name}: {images:,} pictures",
        "",
        f"{'stage':10} {'shards':>8} {'done':>6} {'time':>9} {'per shard':>9}",
    ]
    for stage in STAGES:
        lines.append(_line(job, stage, rates))
    store = images * units * STORE_BYTES + units * STORE_BYTES_OF_UNIT
    each = (x.channels * (PARTIAL_BYTES_OF_SIGNED if x.signed else PARTIAL_BYTES) for x in job.spec.layers)
    partials = images * sum(each)
    lines += [
        "",
        f"store     {_bytes(store)}; partials, until they are folded, {_bytes(partials)}",
        f"measured  {1 / rates.image:.0f} pictures/s, {1 / rates.render_step:.0f} visualization steps/s",
        _batch_line(job),
    ]
    return "\n".join(lines)


def _line(job: Job, stage: Stage, rates: Rates) -> str:
    seconds = rates.seconds(stage.work(job)) / job.spec.config.compute.workers
    expected = stage.expected(job)
    time = f"{_duration(seconds):>9}" if seconds else ""
    if seconds and stage.spec.many:  # a minute or two per shard is best on a cluster (docs/cluster.md)
        time += f" {_duration(rates.seconds(stage.work(job)) / max(expected.first, 1)):>9}"
    try:
        total = sum(len(phase) for phase in stage.phases(job))
        done = total - len(missing_shards(job, stage))
        return f"{stage.name:10} {total:8} {done:6} {time:>9}"
    except (UsageError, FileNotFoundError):  # the shards follow from a stage that has not run
        count = expected.first + expected.later
        return f"{stage.name:10} {count if expected.exact else f'to {count}':>8} {0:6} {time:>9}"


def _duration(seconds: float) -> str:
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s"


def _measure(job: Job, entries: Sequence[Entry]) -> Rates:
    """Measure decoding, the forward pass and the optimization step; the slower of the first two limits the scan."""
    size = job.spec.config.scan.batch_size
    pixels = []
    started = time.perf_counter()
    for entry in entries[: SAMPLE * size]:
        try:
            pixels.append(job.spec.model.preprocess.pixels(open_image(job.dataset.source.read(entry))))
        except (BadImageError, OSError):
            continue
    decoding = (time.perf_counter() - started) / max(len(pixels), 1) / job.runtime.threads
    preprocess = job.spec.model.preprocess
    blank = np.zeros((preprocess.channels, preprocess.height, preprocess.width), np.uint8)
    batch = pad_batch(pixels[:size] or [blank], size)
    job.runtime.measurer.pixels(batch)
    started = time.perf_counter()
    for _ in range(SAMPLE):
        job.runtime.measurer.pixels(batch)
    forward = (time.perf_counter() - started) / SAMPLE / size
    return Rates(max(forward / job.runtime.streams, decoding), _render_seconds(job) / job.runtime.streams)


def _render_seconds(job: Job) -> float:
    """Return the seconds per step and picture: the mean of the first and the middle visualized layer."""
    chosen = visualize.settings(job)
    layers = job.spec.visualized
    seconds = []
    for layer in {layers[0].name: layers[0], layers[len(layers) // 2].name: layers[len(layers) // 2]}.values():
        times: list[float] = []
        quick = Renderer(job.spec.model, layer, visualize.settings(job, steps=4))
        quick.render([Picture(0)], on_step=lambda *_, times=times: times.append(time.perf_counter()))
        seconds.append((times[-1] - times[0]) / (len(times) - 1) / chosen.batch)
    return sum(seconds) / len(seconds)


def _batch_line(job: Job) -> str:
    """Return a line about the memory that a batch of visualizations takes, and the batch that memory allows."""
    layer = max(job.spec.visualized, key=lambda x: [y.name for y in job.spec.layers].index(x.name))
    picture_bytes = memory.bytes_of_a_picture(Renderer(job.spec.model, layer, visualize.settings(job, batch=1)))
    chosen, side_by_side = job.spec.config.visualize.batch, job.runtime.streams * job.spec.config.compute.workers
    most = memory.proposed_batch(picture_bytes * side_by_side, memory.available(job.spec.device))
    return (
        f"visualize a batch of {chosen} takes {_bytes(picture_bytes * chosen)} ({layer.name}); {side_by_side} at once: "
        f"memory allows a batch of {most}"
    )


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
