"""Each question at ImageNet scale: cold, warm, against one raw read of its bytes and against the obvious layouts.

It uses two invented stores (make_store.py), because 1.28 M images x 22,720 units need too much disk. `deep` has all the
images, which set the length of a unit's row. `wide` has all units of a ResNet-50, which set the length of an image's
row.

Warm: p50 and p99 over random units, images and classes, in rounds that no other process disturbed. Cold: opening the
store and the first answer, with the files not in the page cache. Floor: one read of the bytes that the answer needs, at
random offsets of a file in the page cache.
"""

from __future__ import annotations

import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import duckdb
import h5py
import make_store
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from bench import Bar, Report, _timed, options
from make_store import Size

import query
from query.questions.similarity import correlations, similar_images, standing_of
from query.record.dense import Dense
from query.scope import Scope
from store import codes

SEED = 0
BLOCK = 25  # questions per round


@dataclass(frozen=True)
class Question:
    """A question. `ask(i)` asks the i-th random one; `size` is the bytes it needs, for the floor.

    `p50` and `p99` are the bars in milliseconds.
    """

    name: str
    ask: Callable[[int], object]
    size: int
    p50: float | None = None
    p99: float | None = None


@dataclass(frozen=True)
class Store:
    """An opened store and random names in it."""

    root: Path
    scope: Scope
    dense: Dense
    size: Size

    def image(self, i: int) -> int:
        return int(np.random.default_rng([SEED, 1, i]).integers(self.size.images))

    def unit(self, i: int) -> str:
        random = np.random.default_rng([SEED, 2, i])
        layer, channel = self.dense.run.layers, random.integers(self.dense.run.units)
        of_unit = self.dense.run.layer_of(int(channel))
        return f"{of_unit.name}:{channel - of_unit.start}" if layer else ""

    def label(self, i: int) -> int:
        return int(np.random.default_rng([SEED, 3, i]).integers(self.size.classes))


def opened(root: Path) -> Store:
    scope = query.open(root)
    (dense,) = scope._dense.values()
    return Store(root, scope, dense, make_store.size_of(root))


def deep_questions(s: Store) -> list[Question]:
    """Return the questions whose cost depends on the length of a unit's row."""
    ask, N = s.scope, s.size.images
    return [
        Question("top-images, stored", lambda i: ask.top_images(s.unit(i)), 100 * 20, 5),
        Question("top-images, the first 1,000", lambda i: ask.top_images(s.unit(i), 1000), 2 * N, 15),
        Question("unit within a class", lambda i: ask.top_images(s.unit(i), label=s.label(i)), 4 * N // 1000, 2),
        Question("both units high", lambda i: ask.both(s.unit(i), s.unit(i + 1)), 2 * N // 100 * 12, 10),
        Question("A without B", lambda i: ask.both(s.unit(i), s.unit(i + 1), without=True), N, 10),
        Question("similar units, deep", lambda i: ask.similar_units(s.unit(i)), 20 * 12, 10),
        Question(
            "similar images, deep", lambda i: ask.similar_images(s.image(i), s.dense.run.layers[0].name), 36 * N, None
        ),
        Question("unit over all images", lambda i: ask.activations(s.unit(i)), 2 * N, None),
    ]


def wide_questions(s: Store) -> list[Question]:
    """Return the questions whose cost depends on the length of an image's row."""
    ask, U = s.scope, s.dense.run.units
    return [
        Question("top-units", lambda i: ask.top_units(s.image(i)), U, 10, 30),
        Question("top-units by mean", lambda i: ask.top_units(s.image(i), by="mean"), 2 * U, None),
        Question("image over all units", lambda i: ask.activations_of(s.image(i)), 2 * U, None),
        Question("image summary", lambda i: ask.image_summary(s.image(i)), 2 * U, None),
        Question(
            "a class's auc and selectivity, all units", lambda i: ask.units_for_class(s.label(i), None), 16 * U, 150
        ),
        Question("class selectivity, all units", lambda i: ask.class_selectivity(), 12 * U, 150),
        Question("similar units, wide", lambda i: ask.similar_units(s.unit(i)), 20 * 12, 10),
        Question("top-images, stored, wide", lambda i: ask.top_images(s.unit(i)), 100 * 20, 5),
        Question("separating units", lambda i: ask.separating_units(s.label(i), s.label(i + 1)), 32 * U, None),
        Question("polysemantic units", lambda i: ask.polysemantic_units(), U * 100 * 8, None),
    ]


def timed(question: Question, rounds: int) -> list[float]:
    """Return the milliseconds of each warm question, from rounds that no other process disturbed."""
    for i in range(BLOCK):
        question.ask(10_000 + i)
    kept: list[float] = []
    tried = quiet_rounds = count = 0
    while quiet_rounds < rounds and tried < 3 * rounds:
        times: list[float] = []

        def block(first: int = count, times: list[float] = times) -> None:
            began = time.perf_counter()
            for i in range(first, first + BLOCK):
                start = time.perf_counter()
                question.ask(i)
                times.append(1000 * (time.perf_counter() - start))
                if time.perf_counter() - began > 2:  # of a slow question, a few are enough
                    break

        _, quiet = _timed(block)
        tried, count = tried + 1, count + BLOCK
        if quiet:
            quiet_rounds, kept = quiet_rounds + 1, kept + times
    if not kept:
        raise SystemExit(f"{question.name}: the machine was busy in every round: try again later")
    return kept


def cold(root: Path, name: str, make: Callable[[Store], list[Question]]) -> float:
    """Return the milliseconds to open a store whose files are not in the page cache and to get its first answer."""
    for path in root.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    began = time.perf_counter()
    store = opened(root)
    next(q for q in make(store) if q.name == name).ask(77)
    seconds = time.perf_counter() - began
    store.scope.close()
    return 1000 * seconds


def floor(root: Path, size: int) -> float:
    """Return the median milliseconds of one read of `size` bytes, at random offsets of the store's largest file."""
    largest = max((p for p in root.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    room, times = largest.stat().st_size, []
    with largest.open("rb", buffering=0) as file:
        for offset in np.random.default_rng(SEED).integers(0, max(room - size, 1), 50):
            file.seek(int(offset))
            start = time.perf_counter()
            file.read(size)
            times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times[10:])


def in_memory(root: Path) -> None:
    """Read every file once, so that the page cache holds as much as it can."""
    for path in sorted(root.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                while file.read(1 << 24):
                    pass


def measure(report: Report, s: Store, make: Callable[[Store], list[Question]], rounds: int) -> None:
    in_memory(s.root)
    warm = [(question, timed(question, rounds)) for question in make(s)]  # before `cold` empties the page cache
    for question, times in warm:
        p50, p99 = (float(q) for q in np.quantile(times, [0.5, 0.99]))
        bottom, first = floor(s.root, question.size), cold(s.root, question.name, make)
        report.add(question.name, p50, p99, first, bottom, question.size, len(times))
        for quantile, limit, value in (("p50", question.p50, p50), ("p99", question.p99, p99)):
            if limit is not None:
                report.bars.append(Bar(f"{question.name}, {quantile}, ms", value, limit))


def alternatives(report: Report, wide: Store, deep: Store, folder: Path, rounds: int) -> None:
    """Measure the same values as tidy Parquet, as Parquet with one list per row, and as a memory map of float16."""
    rows = min(512, wide.size.images)
    images = np.stack([wide.dense.image(i, "max") for i in range(rows)])
    decoded = np.stack([wide.dense.decode(np.arange(wide.dense.run.units), row, "max") for row in images])
    units = np.stack([deep.dense.unit(deep.dense.run.layers[0], c, "max") for c in range(16)])
    columns = np.take_along_axis(deep.dense.book(deep.dense.run.layers[0], "max").means[:16], units.astype(int), axis=1)
    for question, data in (("top-units", decoded), ("top-images", columns)):
        for name, ask in _layouts(folder, question, data).items():
            times = timed(Question(f"{question} by value: {name}", ask, 0), max(rounds // 4, 1))
            p50, p99 = np.quantile(times, [0.5, 0.99])
            report.add(f"{question} by value: {name}", float(p50), float(p99), "", "", data.shape[1] * 2, len(times))


def _layouts(folder: Path, question: str, data: np.ndarray) -> dict[str, Callable[[int], object]]:
    n, width = data.shape
    tidy, listed, mapped = (folder / f"{question}.{suffix}" for suffix in ("tidy.parquet", "list.parquet", "f16"))
    a, b = np.repeat(np.arange(n, dtype=np.int32), width), np.tile(np.arange(width, dtype=np.int32), n)
    pq.write_table(pa.table({"row": a, "other": b, "value": data.ravel()}), tidy, compression="zstd")
    pq.write_table(
        pa.table({"row": np.arange(n), "value": pa.FixedSizeListArray.from_arrays(data.ravel(), width)}), listed,
        compression="zstd", row_group_size=16,
    )  # fmt: skip
    data.astype(np.float16).tofile(mapped)
    memory = np.memmap(mapped, np.float16, "r", shape=data.shape)
    connection = duckdb.connect()

    def by_list(i: int) -> object:
        text = f"SELECT value FROM '{listed}' WHERE row = {i % n}"
        values = np.array(connection.execute(text).fetchnumpy()["value"][0])
        return np.argsort(-values)[:20]

    def by_tidy(i: int) -> object:
        text = f"SELECT other, value FROM '{tidy}' WHERE row = {i % n} ORDER BY value DESC LIMIT 20"
        return connection.execute(text).fetchall()

    def by_map(i: int) -> object:
        return np.argsort(-memory[i % n].astype(np.float32))[:20]

    return {"tidy Parquet": by_tidy, "one list per row": by_list, "float16 memory map": by_map}


def bytes_of(report: Report, s: Store) -> None:
    """Report the dense record's bytes per activation, for each statistic in both orientations, and their entropy."""
    totals: dict[tuple[str, str], list[float]] = {}
    for path in sorted((s.root / "runs").glob("*/arrays/codes_by_*/*.h5")):
        with h5py.File(path, locking=False) as file:
            for statistic in ("max", "mean"):
                data = file[statistic]
                entry = totals.setdefault((path.parent.name, statistic), [0, 0])
                entry[0] += data.id.get_storage_size()
                entry[1] += data.size
    entropy = {}
    for statistic in ("max", "mean"):
        counts = np.concatenate([book.counts for book in s.dense.books(statistic)]) / s.size.images
        entropy[statistic] = float(-(counts * np.log2(np.maximum(counts, 1e-12))).sum() / len(counts) / 8)
    for (orientation, statistic), (size, count) in sorted(totals.items()):
        note = f"{size / count:.3f} bytes, entropy of each unit alone {entropy[statistic]:.3f}"
        report.notes.append(f"{orientation}, {statistic}: {note}")
    average = {x: statistics.mean(a / b for (_, name), (a, b) in totals.items() if name == x) for x in entropy}
    report.bars.append(Bar("dense record, bytes per activation, maxima", average["max"], 0.45))
    report.bars.append(Bar("dense record, bytes per activation, means", average["mean"], 0.45))
    ratio = sum(average.values()) / sum(entropy.values())
    report.notes.append(f"size of the record / its entropy: {ratio:.3f} (goal: 1.15)")


def exactness(report: Report, wide: Store, deep: Store, few: int) -> None:
    report.bars.append(Bar("top-20 from codes: ranks within a code step", top_places(wide, few), 0.99, at_least=True))
    report.bars.append(Bar("correlation, largest error", correlation_error(deep), 0.001))
    report.bars.append(Bar("similar images, recall of the first 10", recall(deep, few), 0.85, at_least=True))


def top_places(s: Store, images: int) -> float:
    """Return how well codes alone rank the top 20 units of an image.

    It is the share of ranks at which the unit's exact tail probability is within one code step, or one image, of that
    of the unit that is exactly at this rank.
    """
    run = s.dense.run
    ids = np.array([s.image(i) for i in range(images)])
    exact = np.empty((images, run.units))
    z = np.empty((images, run.units))
    for layer, made in zip(run.layers, make_store.layers_of(s.size), strict=True):
        values = make_store.values_of(s.size, made).max
        ordered = np.sort(values, axis=0)
        for c in range(layer.channels):
            reached = s.size.images - np.searchsorted(ordered[:, c], values[ids, c], "left")
            exact[:, layer.start + c] = reached / s.size.images
        z[:, layer.columns] = [run.z(values[i], np.arange(layer.start, layer.stop)) for i in ids]
        exact[:, layer.columns][(values[ids] <= 0) & (not layer.signed)] = 2
    good, units = 0, np.arange(run.units)
    for row, image_id in enumerate(ids):
        code = s.dense.image(int(image_id), "max")
        tail_p, value = s.dense.decode_tail(units, code), s.dense.decode(units, code, "max")
        tail_p[(value <= 0) & ~run.signed] = 2
        ours = np.lexsort((units, -run.z(value, units), tail_p))[:20]
        best = exact[row][np.lexsort((units, -z[row], exact[row]))[:20]]
        off = np.maximum(exact[row][ours] / best, best / exact[row][ours])
        one_image = np.abs(exact[row][ours] - best) * s.size.images <= 1.5
        good += int(((off <= 2 ** (1 / codes.MAX.octave) + 1e-9) | one_image).sum())
    return good / (20 * images)


def correlation_error(s: Store) -> float:
    """Return the largest error of a correlation, against Pearson over exact values.

    About eight units of a layer are compared with all its units.
    """
    layer, made = s.dense.run.layers[0], make_store.layers_of(s.size)[0]
    values = make_store.values_of(s.size, made).max
    worst = 0.0
    for channel in range(0, layer.channels, max(layer.channels // 8, 1)):
        unit = s.scope._unit(f"{layer.name}:{channel}", None, None)
        estimated = correlations(s.dense, unit, np.arange(layer.start, layer.stop))
        own = values[:, channel].astype(np.float64)
        own -= own.mean()
        for c in range(layer.channels):
            other = values[:, c].astype(np.float64)
            length = np.linalg.norm(own) * np.linalg.norm(other - other.mean())
            if length > 0:
                worst = max(worst, abs(estimated[c] - own @ other / length))
    return worst


def recall(s: Store, images: int) -> float:
    """Return the share of the ten most similar images of all that are also found among the candidates."""
    layer, hits = s.dense.run.layers[0], 0
    for i in range(images):
        image_id = s.image(i)
        z = standing_of(s.dense, layer, image_id)
        quick, full = (similar_images(s.dense, layer, 10, image_id, z, everything) for everything in (False, True))
        hits += len(set(quick["image_id"]) & set(full["image_id"]))
    return hits / (10 * images)


def _made(root: Path | None, folder: Path, name: str, images: int, channels: Sequence[int]) -> Path:
    path = root or folder / name
    make_store.make(path, Size(images, tuple(channels), min(1000, images), SEED)) if not path.exists() else None
    return path


@click.command(help=__doc__)
@click.option("--deep", type=click.Path(path_type=Path), help="A store made by make_store.py with many images.")
@click.option("--wide", type=click.Path(path_type=Path), help="A store made by make_store.py with many units.")
@options
def main(deep: Path | None, wide: Path | None, quick: bool, json_file: str | None) -> None:
    folder = Path(tempfile.mkdtemp(prefix="unitscope-questions-"))
    try:
        deep = _made(deep, folder, "deep", 60_000 if quick else 1_281_167, [64] * (1 if quick else 4))
        wide = _made(wide, folder, "wide", 2_000 if quick else 16_384, [512] * 2 if quick else make_store.RESNET50)
        columns = ("question", "warm p50 ms", "p99 ms", "cold ms", "floor ms", "bytes", "asked")
        stores = opened(wide), opened(deep)
        report = Report("Questions: " + " and ".join(_about(s) for s in stores), columns)
        rounds = 2 if quick else 8
        measure(report, stores[0], wide_questions, rounds)
        measure(report, stores[1], deep_questions, rounds)
        alternatives(report, *stores, folder, rounds)
        bytes_of(report, stores[1])
        exactness(report, *stores, 4 if quick else 16)
        raise SystemExit(report.finish(("unitscope", "duckdb", "pyarrow", "h5py", "numpy", "pandas"), "0", json_file))
    finally:
        shutil.rmtree(folder)


def _about(s: Store) -> str:
    return f"{s.root.name}, {s.size.images:,} images x {s.dense.run.units:,} units"


if __name__ == "__main__":
    main()
