"""`python -m support.torture`: try everything and print a table (kind, tried, survived).

--sample N --seed S tries N places of each kind instead. --planted then plants the bugs of `planted.py`. It ends with
exit status 1 if anything was lost or a bug was not noticed.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from support.torture.injector import compiled

if TYPE_CHECKING:
    from support.torture.bits import Bits
    from support.torture.trials import Bench

Work = tuple[str, str, Callable[[], str]]  # kind, what exactly, and the trial, which returns what went wrong

FLIPS = 200  # of each kind of file
ROOM = 256 << 20  # bytes


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m support.torture")
    parser.add_argument("--sample", type=int, default=0, help="trials of each kind; 0: all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="kinds whose name contains this")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--planted", action="store_true", help="then plant bugs, which must be noticed")
    given = parser.parse_args()
    return in_a_folder("support.torture", lambda folder: _tortured(folder, given))


def in_a_folder(module: str, work: Callable[[Path], int]) -> int:
    """Start this module again with the injector preloaded, then work in a temporary folder. Returns the exit status."""
    library = compiled()
    if library is None:
        print("faults: not tried, since there is no C compiler or no preloading here")
        return 0
    if os.environ.get("UNITSCOPE_INJECTOR") != str(library):
        os.environ |= {
            "LD_PRELOAD": str(library), "UNITSCOPE_INJECTOR": str(library), "OMP_NUM_THREADS": "1",
            "UNITSCOPE_KEEP_MEMORY": "0",
        }  # fmt: skip
        os.execv(sys.executable, [sys.executable, "-m", module, *sys.argv[1:]])
    memory = Path("/dev/shm")  # where a sync waits for no disk
    roomy = memory.is_dir() and shutil.disk_usage(memory).free > ROOM
    folder = Path(tempfile.mkdtemp(prefix="unitscope-torture-", dir=memory if roomy else None))
    try:
        return work(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _tortured(folder: Path, given: argparse.Namespace) -> int:
    from support.torture import planted
    from support.torture.bits import Bits
    from support.torture.trials import Bench

    started = time.monotonic()
    bench = Bench(folder)
    (folder / "flips").mkdir()
    bits = Bits(list(bench.stages.values())[-1][1], folder / "flips")
    work = [one for one in everything(bench, bits) if given.only in one[0]]
    table = {kind: [0, 0] for kind, _, _ in work}
    if given.sample:
        work = _sample(work, given.sample, given.seed)
    random.Random(1).shuffle(work)  # so that the processes end together
    results = _shared(work, given.processes, folder)
    for (kind, what, _), wrong in zip(work, results, strict=True):
        if wrong.startswith("not tried"):
            continue
        table[kind][0] += 1
        table[kind][1] += not wrong
        if wrong:
            print(f"LOST  {kind}: {what}: {wrong}", file=sys.stderr)
    print(f"{'kind':34} {'tried':>7} {'survived':>9}")
    for kind, (tried, survived) in table.items():
        print(f"{kind:34} {tried:7} {survived:9}")
    tried, survived = (sum(row[i] for row in table.values()) for i in range(2))
    print(f"{'all':34} {tried:7} {survived:9}   in {time.monotonic() - started:.0f} s")
    if not given.planted:
        return int(survived < tried)
    print(flush=True)
    return int(planted.unnoticed(bench, bits) > 0 or survived < tried)


def everything(bench: Bench, bits: Bits) -> list[Work]:
    """Return every trial of every kind."""
    from support.torture.trials import COMMIT

    work: list[Work] = []
    for trial in bench.all():
        work.append((trial.kind, str(trial), lambda trial=trial: bench.survives(trial)))  # type: ignore[misc]
    for stage, count in bench.counts.items():
        work.append(("order of syncs", stage, lambda stage=stage: bench.order(stage)))  # type: ignore[misc]
        for processes in (2, 6):
            for place in (0, *range(1, count, max(count // 6, 1))):
                work.append(
                    (
                        f"{processes} processes, one stopped", f"{stage} at {place}",
                        lambda stage=stage, n=processes, place=place: bench.race(stage, n, place),  # type: ignore[misc]
                    )
                )  # fmt: skip
    for place in range(1, COMMIT):
        work.append(("a loser with other contents", f"stopped at {place}", lambda p=place: bench.loser(p)))  # type: ignore[misc]
    work.append(("housekeeping beside the living", "a clock ahead", bench.living_are_left_alone))
    for kilobytes in range(40, 1500, 60):
        work.append(("a full file system", f"{kilobytes} kB", lambda k=kilobytes: bench.full_disk(k)))  # type: ignore[misc]
    for kind in bits.kinds:
        for path, byte, bit in bits.flips(kind, FLIPS):
            work.append(
                (f"bits of {kind}", f"{path} byte {byte} bit {bit}",
                 lambda flip=(path, byte, bit): bits.survives(*flip))  # type: ignore[misc]
            )  # fmt: skip
    return work


def _sample(work: Sequence[Work], count: int, seed: int) -> list[Work]:
    rng = random.Random(seed)
    by_kind: dict[str, list[Work]] = {}
    for one in work:
        by_kind.setdefault(one[0], []).append(one)
    return [one for of_kind in by_kind.values() for one in rng.sample(of_kind, min(count, len(of_kind)))]


def _shared(work: Sequence[Work], processes: int, folder: Path) -> list[str]:
    """Run trials in forked processes, and return what each found."""
    pids = []
    for share in range(processes):
        pid = os.fork()
        if not pid:
            try:
                for number in range(share, len(work), processes):
                    try:
                        wrong = work[number][2]()
                    except BaseException as error:
                        wrong = f"{type(error).__name__}: {error}"
                    (folder / f"result-{number}").write_text(wrong)
            finally:
                os._exit(0)
        pids.append(pid)
    for pid in pids:
        os.waitpid(pid, 0)
    found = [folder / f"result-{number}" for number in range(len(work))]
    return [path.read_text() if path.exists() else "the trial left no result" for path in found]


if __name__ == "__main__":
    sys.exit(main())
