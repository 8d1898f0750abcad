"""The time per image that the fold adds to a scan.

The fold computes top-k, lowest-k, tails, codes in both orientations, class sums, correlations and sketches. It runs
once, after all shards, on CPUs only. It has a cost per unit (tables, edges, components) and a cost per image, which
dominates at a million images. The cost per image is taken from the difference between two numbers of images. Both
stages run from files, as `unitscope run` runs them; the bare pass is that of `scan.py`.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import click
from bench import Bar, Report, interleaved, options
from cases import PACKAGES, Scan, config_of, folder_of_photographs, photographs

from pipeline import driver
from pipeline.job import Job
from pipeline.runtime.devices import set_up

FEW, MANY, LIMIT = 1000, 4000, 1.25


def seconds_of_stages(network: str, images: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory(prefix="unitscope-fold-") as folder:
        pictures = Path(folder) / "photographs"
        pictures.mkdir()
        job = Job(config_of(network, folder_of_photographs(pictures, images)), Path(folder) / "store", progress=False)
        driver.run(job, ("index", "calibrate"))
        seconds = {}
        for stage in ("scan", "fold"):
            began = time.perf_counter()
            driver.run(job, (stage,))
            seconds[stage] = time.perf_counter() - began
        return seconds


def bare_pass(network: str, images: int, rounds: int) -> float:
    scan = Scan(network, images)
    try:
        return interleaved({"bare": scan.forward}, rounds, say="bare")["bare"].median / images
    finally:
        scan.close()


@click.command(help=__doc__)
@options
def main(quick: bool, json_file: str | None) -> None:
    set_up()
    few, many = (128, 512) if quick else (FEW, MANY)
    report = Report("The fold beside the scan, EfficientNet-Lite0", ("images", "scan s", "fold s"))
    seconds = {}
    for images in (few, many):
        seconds[images] = seconds_of_stages("lite0", images)
        report.add(images, seconds[images]["scan"], seconds[images]["fold"])
    bare = bare_pass("lite0", 256, 2 if quick else 7)
    each = {stage: (seconds[many][stage] - seconds[few][stage]) / (many - few) for stage in ("scan", "fold")}
    report.notes.append(
        f"milliseconds per additional image: scan {1e3 * each['scan']:.2f} with decoding, fold "
        f"{1e3 * each['fold']:.2f}; bare pass {1e3 * bare:.2f}"
    )
    report.bars = [Bar("lite0: (scan and fold per additional image) / bare", sum(each.values()) / bare, LIMIT)]
    raise SystemExit(report.finish(PACKAGES, f"none; photographs: {photographs()[1]}", json_file))


if __name__ == "__main__":
    main()
