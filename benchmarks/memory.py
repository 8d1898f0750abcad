"""Peak memory of a scan, for two numbers of images. Each scan runs in a process of its own, from files, with its index.

The batch, the layers and the size of a shard should bound the peak, and the number of images should not matter.
"""

from __future__ import annotations

import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import click
from bench import Bar, Report, options
from cases import NETWORKS, PACKAGES, config_of, folder_of_photographs, photographs

FEW, MANY = 250, 2000
SCANS = 3  # scans of each case: which batches are in memory at a time varies, by a few per cent of the peak
STAGES = ("index", "calibrate", "scan")


def peak(network: str, images: int) -> tuple[float, float]:
    """Scan `images` photographs in another process and return its peak resident MiB and its seconds."""
    folder = tempfile.mkdtemp(prefix="unitscope-memory-")
    try:
        command = [sys.executable, __file__, "--child", folder, "--network", network, "--images", str(images)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        size, seconds = done.stdout.split()
        return float(size), float(seconds)
    finally:
        shutil.rmtree(folder)


def child(folder: Path, network: str, images: int) -> None:
    import time

    from pipeline import driver
    from pipeline.job import Job

    (folder / "photographs").mkdir()
    source = folder_of_photographs(folder / "photographs", images)
    job = Job(config_of(network, source), folder / "store", progress=False)
    began = time.perf_counter()
    driver.run(job, STAGES)
    seconds = time.perf_counter() - began
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, seconds)


@click.command(help=__doc__)
@click.option("--network", default="", help="Measure only this network.")
@click.option("--images", default=0, hidden=True)
@click.option("--child", "folder", hidden=True)
@options
def main(network: str, images: int, folder: str | None, quick: bool, json_file: str | None) -> None:
    if folder:
        child(Path(folder), network, images)
        return
    few, many = (64, 256) if quick else (FEW, MANY)
    report = Report("Peak memory of a scan", ("network", "images", "peak MiB", "spread", "seconds"))
    for name in [network] if network else ["lite0"] if quick else list(NETWORKS):
        scans: dict[int, list[tuple[float, float]]] = {few: [], many: []}
        for _ in range(SCANS):
            for count, peaks in scans.items():
                peaks.append(peak(name, count))
        median = {}
        for count, peaks in scans.items():
            sizes, seconds = zip(*peaks, strict=True)
            median[count] = statistics.median(sizes)
            spread = f"{min(sizes):.0f} .. {max(sizes):.0f}"
            report.add(name, count, median[count], spread, statistics.median(seconds))
        report.bars.append(Bar(f"{name}: peak at {many} / at {few} images", median[many] / median[few], 1.05))
    raise SystemExit(report.finish(PACKAGES, f"none; photographs: {photographs()[1]}", json_file))


if __name__ == "__main__":
    main()
