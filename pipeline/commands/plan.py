"""Plan a run from its config and what the store holds: its shards, bytes and hours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.commands.rehearsal import (
    NOTHING,
    Costs,
    Rendering,
    Seconds,
    between,
    classes_of,
    of_fold_and_examples,
    of_jpeg,
    of_layers,
    of_picture,
    side_by_side,
)
from pipeline.driver import missing_shards
from pipeline.featurevis import Renderer, memory
from pipeline.graph import Layer
from pipeline.job import Job, Stage, Work
from pipeline.runtime.devices import set_up
from pipeline.runtime.progress import say
from pipeline.stages import STAGES, visualize
from store.errors import UsageError

# Measured on EfficientNet-Lite0 and 500 photographs: bytes per image and unit, and further bytes per unit.
STORE_BYTES, STORE_BYTES_OF_UNIT = 4.1, 5_500
PARTIAL_BYTES, PARTIAL_BYTES_OF_SIGNED = 10, 16  # float32 and uint16: max, argmax, mean; min, argmin
NOISY = 1.25  # times the least that was measured; with more between, a range is given


@dataclass(frozen=True)
class Rates:
    """What was measured on this machine, in seconds: see `rehearsal`."""

    picture: Seconds
    prepared: float
    jpeg: Seconds
    costs: Costs
    rendered: Sequence[Rendering]

    def seconds(self, job: Job, work: Work) -> Seconds:
        """Return the estimated seconds for some work in one process."""
        layers, images, batch = len(job.spec.layers), len(job.dataset.entries), job.spec.config.scan.batch_size
        total = self.jpeg.times(work.encoded)
        if work.images:
            padded = -(-work.images // batch) * batch
            total += self.picture.times(padded)
            total += NOTHING if work.encoded else Seconds(self.prepared, self.prepared)
        if work.positions:
            total += self.costs.examples(layers, work.images, work.positions)
        if work.folded:
            total += self.costs.fold(layers, work.folded, images, classes_of(job))
        shards = [self._of_shard(job, layer, sum(batches)) for layer, batches in work.rendered]
        return total + (side_by_side(shards, job.runtime.streams) if shards else NOTHING)

    def _of_shard(self, job: Job, layer: Layer, pictures: int) -> Seconds:
        known = between(self.rendered, job.spec.model.graph.cost(layer))
        return known.picture.times(pictures) + Seconds(known.start, known.start)


def make_plan(job: Job) -> str:
    """Return the plan as text. It measures a little of each stage's work on this machine, and keeps no results."""
    set_up()
    for stage in STAGES:
        job.store.done(stage.name)  # raises, as `run` would, if the store holds a run with another config
    images, units = len(job.dataset.entries), int(job.spec.units.offsets[-1])
    rates = measure(job)
    lines = [
        f"run       {job.store.run}, fingerprint {job.spec.fingerprint[:12]}, on {job.spec.device} "
        f"with {job.runtime.threads} threads, {job.spec.config.compute.workers} worker(s)",
        f"model     {len(job.spec.layers)} layers, {units:,} units; "
        + (f"no predictions: {job.spec.no_predictions}" if job.spec.no_predictions else "predictions recorded"),
        f"dataset   {job.dataset.name}: {images:,} pictures",
        "",
        f"{'stage':10} {'shards':>8} {'done':>6} {'time':>15} {'per shard':>15}",
    ]
    for stage in STAGES:
        lines.append(_line(job, stage, rates))
    store = images * units * STORE_BYTES + units * STORE_BYTES_OF_UNIT
    each = (x.channels * (PARTIAL_BYTES_OF_SIGNED if x.signed else PARTIAL_BYTES) for x in job.spec.layers)
    partials = images * sum(each)
    lines += [
        "",
        f"store     {_bytes(store)}; partials, until they are folded, {_bytes(partials)}",
        f"measured  {1 / rates.picture.middle:.0f} pictures/s, {1e9 * rates.costs.value:.0f} ns to fold a value, "
        f"{_steps(job, rates):.0f} visualization steps/s",
        _batch_line(job),
        "          A time is a range where what was measured differed by more than a quarter.",
    ]
    return "\n".join(lines)


def _line(job: Job, stage: Stage, rates: Rates) -> str:
    seconds = rates.seconds(job, stage.work(job)).times(1 / job.spec.config.compute.workers)
    expected = stage.expected(job)
    time = f"{duration(seconds):>15}" if seconds.high else ""
    if seconds.high and stage.spec.many:  # a minute or two per shard is best on a cluster (docs/cluster.md)
        time += f" {duration(seconds.times(job.spec.config.compute.workers / max(expected.first, 1))):>15}"
    try:
        total = sum(len(phase) for phase in stage.phases(job))
        done = total - len(missing_shards(job, stage))
        return f"{stage.name:10} {total:8} {done:6} {time}".rstrip()
    except (UsageError, FileNotFoundError):  # the shards follow from a stage that has not run
        count = expected.first + expected.later
        return f"{stage.name:10} {count if expected.exact else f'to {count}':>8} {0:6} {time}".rstrip()


def duration(seconds: Seconds) -> str:
    """Return a duration, or a range if the least and the most that was measured differ much."""
    unit, length = next(((u, n) for u, n in (("h", 3600), ("min", 60)) if seconds.middle >= n), ("s", 1))
    form = ".1f" if length > 1 or seconds.middle < 10 else ".0f"
    if seconds.high <= NOISY * seconds.low:
        return f"{seconds.middle / length:{form}} {unit}"
    return f"{seconds.low / length:{form}} to {seconds.high / length:{form}} {unit}"


def measure(job: Job) -> Rates:
    """Measure this machine at a little of each stage's work."""
    say("plan: measuring this machine at a little of each stage's work")
    picture, prepared = of_picture(job)
    return Rates(picture, prepared, of_jpeg(job), of_fold_and_examples(job, classes_of(job)), of_layers(job))


def _steps(job: Job, rates: Rates) -> float:
    """Return the visualization steps per second of this machine, at the middle of the layers that were measured."""
    middle = rates.rendered[len(rates.rendered) // 2]
    return job.spec.config.visualize.steps * job.runtime.streams / middle.picture.middle


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
