"""What the fold adds to a scan, an image: top-k, lowest-k, tails, codes both ways, class sums, correlations, sketches.

The fold runs once, after all shards, on processors alone. It has a cost a unit (tables, edges, components) and one an
image; the second is the difference between two numbers of images, and is what counts at a million. Both stages run as
`unitscope run` runs them, from files; the bare pass is that of `scan.py`.
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
        found = {}
        for stage in ("scan", "fold"):
            began = time.perf_counter()
            driver.run(job, (stage,))
            found[stage] = time.perf_counter() - began
        return found


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
    found = {}
    for images in (few, many):
        found[images] = seconds_of_stages("lite0", images)
        report.add(images, found[images]["scan"], found[images]["fold"])
    bare = bare_pass("lite0", 256, 2 if quick else 7)
    each = {stage: (found[many][stage] - found[few][stage]) / (many - few) for stage in ("scan", "fold")}
    report.notes.append(
        f"milliseconds an image more: scan {1e3 * each['scan']:.2f} with decoding, fold {1e3 * each['fold']:.2f}; the "
        f"bare pass {1e3 * bare:.2f}"
    )
    report.bars = [Bar("lite0: (scan and fold an image more) / bare", sum(each.values()) / bare, LIMIT)]
    raise SystemExit(report.finish(PACKAGES, f"none; photographs: {photographs()[1]}", json_file))


if __name__ == "__main__":
    main()
