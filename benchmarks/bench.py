"""The parts that all benchmarks share: interleaved rounds, a check that the machine is idle, the table and the bars."""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import click

BUSY = 0.08  # share of one core; a round is discarded if other processes use more than this during a sample
TRIES = 3  # rounds that are tried at most, for each round that is wanted


def _nothing() -> None:
    pass


@dataclass(frozen=True)
class Samples:
    """The seconds of one side: one number per round that was kept, in order."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def spread(self) -> str:
        return f"{min(self.seconds):.4g} .. {max(self.seconds):.4g}"

    def over(self, other: Samples) -> float:
        """Return the median over rounds of this side's seconds divided by the other's in the same round."""
        return statistics.median(a / b for a, b in zip(self.seconds, other.seconds, strict=True))


@dataclass(frozen=True)
class Bar:
    """A target for a figure: `value <= limit`, or `value >= limit` if `at_least` is set."""

    name: str
    value: float
    limit: float
    at_least: bool = False

    @property
    def holds(self) -> bool:
        return bool(self.value >= self.limit if self.at_least else self.value <= self.limit)


@dataclass
class Report:
    """The rows and bars of one program. `finish` prints them, writes the JSON and returns the exit status."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[object, ...]] = field(default_factory=list)
    bars: list[Bar] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, *row: object) -> None:
        if len(row) != len(self.columns):
            raise ValueError(f"{len(row)} cells for {len(self.columns)} columns")
        self.rows.append(row)

    def finish(self, packages: Sequence[str], seeds: str, json_file: str | None) -> int:
        print(f"{self.title}\n{machine()}; {versions(packages)}; seeds: {seeds}\n")
        print(_table(self.columns, [[_cell(c) for c in row] for row in self.rows]))
        for note in self.notes:
            print(f"  {note}")
        print()
        for bar in self.bars:
            sign = ">=" if bar.at_least else "<="
            print(f"{'holds ' if bar.holds else 'MISSED'}  {bar.name}: {bar.value:.3f} ({sign} {bar.limit:g})")
        if json_file:
            body = {b.name: {"value": float(b.value), "limit": b.limit, "holds": b.holds} for b in self.bars}
            Path(json_file).write_text(json.dumps(body, indent=1) + "\n")
        return 0 if all(bar.holds for bar in self.bars) else 1


def options(function: Callable[..., None]) -> Callable[..., None]:
    """Add the options `--quick` and `--json FILE`, which every benchmark takes."""
    function = click.option("--json", "json_file", metavar="FILE", help="Write {bar: {value, limit, holds}}.")(function)
    return click.option("--quick", is_flag=True, help="Run fewer rounds and cases, in under a minute.")(function)


def interleaved(
    sides: Mapping[str, Callable[[], object]],
    rounds: int,
    warm: int = 1,
    say: str = "",
    prepare: Callable[[], object] = _nothing,
) -> dict[str, Samples]:
    """Time the sides in turn, round after round. Rounds in which other processes used the machine are discarded.

    Every second round goes through the sides backwards, so that none is always the first. `prepare` is called before
    each call of a side, and is not timed. A side does the same amount of work in every call. A call should take at
    least 0.2 s, because the kernel counts the time of other processes in hundredths of a second. Raises SystemExit if
    too few rounds were undisturbed.
    """
    for side in sides.values():
        for _ in range(warm):
            prepare()
            side()
    kept: list[dict[str, float]] = []
    tried = 0
    while len(kept) < rounds and tried < rounds * TRIES:
        tried += 1
        order = list(sides) if tried % 2 else list(sides)[::-1]
        timings = {name: _timed(sides[name], prepare) for name in order}
        if all(quiet for _, quiet in timings.values()):
            kept.append({name: seconds for name, (seconds, _) in timings.items()})
        _progress(f"{say}: {len(kept)}/{rounds} rounds, {tried - len(kept)} discarded")
    _progress("")
    if len(kept) < max(rounds // 2, 1):
        raise SystemExit(f"{say}: the machine was busy in {tried - len(kept)} of {tried} rounds: try again later")
    return {name: Samples(tuple(r[name] for r in kept)) for name in sides}


def _timed(side: Callable[[], object], prepare: Callable[[], object] = _nothing) -> tuple[float, bool]:
    prepare()
    others = _others()
    began = time.perf_counter()
    side()
    seconds = time.perf_counter() - began
    return seconds, _others() - others <= BUSY * seconds + 0.02  # two ticks of the kernel's clock


def _others() -> float:
    """Return the CPU seconds since boot of everything but this process and its descendants.

    Time that the hypervisor has stolen counts. Without /proc the result is always 0, and no round is discarded.
    """
    try:
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    except OSError:
        return 0.0
    user, nice, system, _, _, irq, softirq, steal = (int(f) for f in fields)
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK") - _own()


def _own() -> float:
    parents: dict[int, list[int]] = {}
    used: dict[int, float] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            after = stat.read_text().rpartition(")")[2].split()
        except OSError:  # the process has ended meanwhile
            continue
        pid = int(stat.parent.name)
        parents.setdefault(int(after[1]), []).append(pid)
        used[pid] = sum(int(t) for t in after[11:15])  # own time and that of children waited for
    total, todo = 0.0, [os.getpid()]
    while todo:
        pid = todo.pop()
        total += used.get(pid, 0.0)
        todo += parents.get(pid, [])
    return total / os.sysconf("SC_CLK_TCK")


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def machine() -> str:
    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{cores} cores, {model}, {platform.system()}, Python {platform.python_version()}"


def versions(packages: Sequence[str]) -> str:
    texts = []
    for name in packages:
        try:
            texts.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            texts.append(f"{name} missing")
    return ", ".join(texts)


def _cell(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(c), *(len(r[i]) for r in rows)) if rows else len(c) for i, c in enumerate(columns)]
    lines = ["  ".join(c.ljust(w) for c, w in zip(columns, widths, strict=True))]
    lines += ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(line.rstrip() for line in lines) + "\n"
