"""What safety costs: a scan of 2,000 photographs and the first question, with and without what guards the store.

Without: HDF5 writes by itself, nothing is announced, links are not looked for, folders are not synced upward, and no
digest is compared. Files are written under temporary names, synced, hashed and recorded on both sides.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import click
from bench import Bar, Report, interleaved, options
from cases import PACKAGES, config_of, folder_of_photographs, photographs

import query
from pipeline import driver
from pipeline.job import Job
from query.sql.database import Limits
from store import containment, hdf5, intents, publish
from store.intact import Intact

IMAGES, ROUNDS, QUESTIONS = 2000, 5, 9
OPENINGS = 20  # of a store, in one sample


@contextlib.contextmanager
def unguarded() -> Iterator[None]:
    """Take the guards away."""
    with (
        mock.patch.object(hdf5, "write", hdf5.write_to),
        mock.patch.object(intents, "announced", return_value=contextlib.nullcontext()),
        mock.patch.object(containment, "refuse_links", return_value=None),
        mock.patch.object(publish, "_sync_upward", lambda _, folder: publish._sync_folder(folder)),
        mock.patch.object(publish, "_make_folders", lambda folder: folder.mkdir(parents=True, exist_ok=True)),
        mock.patch.object(Intact, "require", return_value=None),
    ):
        yield


def scans(folder: Path, images: int, rounds: int, report: Report) -> None:
    """Measure the stage `scan`, from files to committed partials."""
    (folder / "photographs").mkdir()
    config = config_of("lite0", folder_of_photographs(folder / "photographs", images))
    indexed, root = folder / "indexed", folder / "store"
    driver.run(Job(config, indexed, progress=False), ("index", "calibrate"))

    def fresh() -> None:
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(indexed, root)
        os.sync()  # what the side before has written must not be waited for by the next

    def scan() -> None:
        driver.run(Job(config, root, progress=False), ("scan",))

    def bare() -> None:
        with unguarded():
            scan()

    found = interleaved({"with": scan, "without": bare}, rounds, say="scan", prepare=fresh)
    ratio = found["with"].over(found["without"])
    for side, samples in found.items():
        report.add(f"scan of {images} photographs", side, samples.median, samples.spread)
    report.bars.append(Bar("scan: with / without", ratio, 1.02))
    driver.run(Job(config, root, progress=False), ("fold",))


def questions(folder: Path, rounds: int, report: Report) -> None:
    """Measure opening a store and its first answer: with no digest known, with all known, and without comparing any."""
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    root = folder / "store"

    def ask() -> None:
        for _ in range(OPENINGS):
            with query.open(root, limits=Limits(isolated=False)) as scope:
                scope.top_units(0)

    def cold() -> None:
        for _ in range(OPENINGS):
            shutil.rmtree(folder / "cache", ignore_errors=True)
            with query.open(root, limits=Limits(isolated=False)) as scope:
                scope.top_units(0)

    def bare() -> None:
        with unguarded():
            ask()

    found = interleaved({"no digest known": cold, "all known": ask, "without": bare}, rounds, say="first question")
    for side, samples in found.items():
        report.add("open and ask top_units", side, samples.median / OPENINGS, f"{samples.spread} for {OPENINGS}")
    for side in ("no digest known", "all known"):
        report.bars.append(Bar(f"first question: {side} / without", found[side].over(found["without"]), 2))


@click.command(help=__doc__)
@options
def main(quick: bool, json_file: str | None) -> None:
    report = Report("What safety costs", ("work", "side", "seconds", "spread"))
    folder = Path(tempfile.mkdtemp(prefix="unitscope-safety-"))
    try:
        scans(folder, 128 if quick else IMAGES, 2 if quick else ROUNDS, report)
        questions(folder, 2 if quick else QUESTIONS, report)
    finally:
        shutil.rmtree(folder)
    raise SystemExit(report.finish(PACKAGES, f"none; photographs: {photographs()[1]}", json_file))


if __name__ == "__main__":
    main()
