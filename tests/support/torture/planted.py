"""`python -m support.torture.planted`: five bugs, each of which some trial must notice.

Prints a line for each bug: its name, and the trial that noticed it. Its exit status is how many went unnoticed.
"""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from pipeline.statistics import ranking
from store import hdf5, layout, publish
from store.commits import File, Record
from store.intact import Intact
from store.publish import Publication
from support.torture.bits import Bits
from support.torture.trials import COMMIT, Bench, Trial

Notice = Callable[[Bench, Bits], Iterable[tuple[str, str]]]  # (trial, what went wrong), of trials that may notice a bug


def nothing_is_synced() -> None:
    """A record becomes visible before the files that it lists are on the disk."""
    publish._sync = lambda path: None  # type: ignore[assignment]


def _order(bench: Bench, bits: Bits) -> Iterable[tuple[str, str]]:
    return ((f"order of syncs of {stage}", bench.order(stage)) for stage in bench.stages)


def files_before_the_comparison() -> None:
    """Files are renamed into place before anybody looks whether the shard is committed."""

    def commit(self: Publication, facts: dict[str, Any] | None = None, gone: Iterable[File] = ()) -> Record:
        written = [File(name, path.stat().st_size, publish.sha256(path)) for name, path in self._pending.items()]
        files = tuple(sorted([*written, *gone], key=lambda file: file.path))
        new = Record(self.run, self.stage, self.shard, self.fingerprint, files, facts or {})
        place = layout.record(self.run, self.stage, self.shard)
        for name, path in self._pending.items():
            publish._sync(path)
            os.replace(path, self.root / name)
            publish._sync_upward(self.root, (self.root / name).parent)
        self._pending.clear()
        publish._make_folders((self.root / place).parent)
        return publish._link(self.root, place, new)

    Publication.commit = commit  # type: ignore[method-assign]


def _losers(bench: Bench, bits: Bits) -> Iterable[tuple[str, str]]:
    return ((f"a loser stopped at {place}", bench.loser(place)) for place in range(1, COMMIT))


def hdf5_closes_in_silence() -> None:
    """HDF5 writes by itself, and loses the failures of its last writes."""
    hdf5.write = hdf5.write_to


def _failing_writes(bench: Bench, bits: Bits) -> Iterable[tuple[str, str]]:
    for stage in ("scan", "fold"):
        for place, call in enumerate(bench.calls[stage], 1):
            if call == "write":
                trial = Trial("fail once", stage, place)
                yield str(trial), bench.survives(trial)


def digests_are_not_looked_at() -> None:
    """Readers compute what a file should be, and do not compare it."""
    Intact._hashed = Intact._mark  # type: ignore[method-assign]


def _flipped_tables(bench: Bench, bits: Bits) -> Iterable[tuple[str, str]]:
    return (
        (f"byte {byte} of {path}", bits.survives(path, byte, bit))
        for path, byte, bit in bits.flips("tables of runs", 60)
    )


def ties_are_broken_by_chance() -> None:
    """Images with equal values come in any order."""
    highest = ranking.highest

    def shuffled(values: Any, means: Any, ids: Any, k: int, above_zero: bool) -> Any:
        other = ids.copy()
        random.shuffle(other)
        return highest(values, means, other, k, above_zero)

    ranking.highest = shuffled  # type: ignore[assignment]


def _again(bench: Bench, bits: Bits) -> Iterable[tuple[str, str]]:
    return ((f"fold, run once more ({n})", bench.race("fold", 1, 0)) for n in range(5))


BUGS: dict[str, tuple[Callable[[], None], Notice]] = {
    "a record before its files are synced": (nothing_is_synced, _order),
    "files before the comparison": (files_before_the_comparison, _losers),
    "HDF5 that is closed in silence": (hdf5_closes_in_silence, _failing_writes),
    "a digest that nobody looks at": (digests_are_not_looked_at, _flipped_tables),
    "ties broken by chance": (ties_are_broken_by_chance, _again),
}


def main(folder: Path) -> int:
    bench = Bench(folder)
    (folder / "flips").mkdir()
    return unnoticed(bench, Bits(list(bench.stages.values())[-1][1], folder / "flips"))


def unnoticed(bench: Bench, bits: Bits) -> int:
    """Plant each bug and print which trial noticed it. Returns how many went unnoticed."""
    count = 0
    for name, (plant, notice) in BUGS.items():
        bench.plant = bits.plant = plant
        found = next(((trial, wrong) for trial, wrong in notice(bench, bits) if wrong), None)
        print(f"{name}: {f'{found[0]}: {found[1]}' if found else 'NOT NOTICED'}".replace("\n", " ")[:300], flush=True)
        count += found is None
    return count


if __name__ == "__main__":
    from support.torture.__main__ import in_a_folder

    sys.exit(in_a_folder("support.torture.planted", main))
