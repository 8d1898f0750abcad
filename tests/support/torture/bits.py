"""Flipped bits: `verify` names the file, and every reader says so or answers as if nothing had happened."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import query
from query.scope import Scope
from query.sql.database import Limits
from store import export, schema, verify
from support.torture.injector import forked
from support.torture.small_run import digests

RUN = "plain@few"


def kinds(store: Path) -> dict[str, list[Path]]:
    """Return the files of a store, relative to it, by kind."""
    found: dict[str, list[Path]] = {}
    for path in sorted(store.rglob("*")):
        relative = path.relative_to(store)
        if path.is_file() and relative.parts[0] != "logs":
            found.setdefault(_kind(relative), []).append(relative)
    return found


def _kind(path: Path) -> str:
    if path.parts[0] in ("commits", "datasets"):
        return {"commits": "commit records", "datasets": "tables of datasets"}[path.parts[0]]
    if path.suffix != ".h5":
        return "tables of runs" if path.suffix == ".parquet" else path.name
    if path.parent.name in ("examples", "visualizations"):
        return "stored pictures"
    return "the dense record" if "codes" in str(path) else "other arrays"


def answers(root: Path) -> str:
    """Ask everything, and return a digest of all answers."""
    digest = hashlib.sha256()
    # A child process per store would only ask the same in a place that is slower to start.
    with query.open(root, limits=Limits(isolated=False, threads=1)) as scope:
        for frame in _asked(scope):
            digest.update(frame.encode())
    return digest.hexdigest()


def _asked(scope: Scope) -> Iterator[str]:
    for table in (*(t.name for t in schema.TABLES), "images", "rejected_images"):
        yield scope.sql(f"SELECT * FROM {table} ORDER BY ALL").df().to_json()
    for image in (1, 2):
        for by in ("tail", "max", "mean"):
            yield scope.top_units(image, 9, by=by).to_json()
        yield scope.activations_of(image).to_json()
        yield scope.image_summary(image).to_json()
        yield scope.similar_images(image, "1", 3).to_json()
    for unit in ("1:0", "4:3"):
        yield scope.top_images(unit, 4).to_json()
        yield scope.top_images(unit, 4, by="mean").to_json()
        yield scope.activations(unit).to_json()
        yield scope.similar_units(unit, 4, layer="*").to_json()
        yield scope.both(unit, "1:1").to_json()
        yield scope.contact_sheet(unit).tobytes().hex()
    yield (
        scope.visualization(scope.sql("SELECT layer || ':' || channel FROM visualizations").fetchall()[0][0])
        .tobytes()
        .hex()
    )
    yield scope.units_for_class(0).to_json()
    yield scope.class_selectivity().to_json()
    yield scope.separating_units([0, 2], [1, 3]).to_json()
    yield scope.unit_states().to_json()


class Bits:
    """A finished store, its answers, and what is flipped in a copy of it."""

    def __init__(self, store: Path, folder: Path, plant: Callable[[], object] = lambda: None) -> None:
        self.store, self.folder, self.plant = store, folder, plant
        os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
        self.kinds = kinds(store)
        said = folder / "answers"
        assert forked(lambda: said.with_suffix(".txt").write_text(answers(store)), said) == 0, said.read_text()
        self.wanted = said.with_suffix(".txt").read_text()
        assert forked(lambda: export.export(store, RUN, folder / "exported"), said) == 0, said.read_text()
        self.exported = digests(folder / "exported")

    def flips(self, kind: str, count: int, seed: int = 0) -> Iterator[tuple[Path, int, int]]:
        """Return (file, byte, bit) of random flips in files of a kind."""
        rng = random.Random(f"{kind} {seed}")
        for _ in range(count):
            path = rng.choice(self.kinds[kind])
            yield path, rng.randrange((self.store / path).stat().st_size), rng.randrange(8)

    def survives(self, path: Path, byte: int, bit: int) -> str:
        """Flip a bit and ask everybody. Returns what went wrong, or "" if nothing did."""
        root = self.folder / f"{os.getpid()}-bits"
        if not root.exists():
            shutil.copytree(self.store, root)
        file = root / path
        whole = file.read_bytes()
        flipped = bytearray(whole)
        flipped[byte] ^= 1 << bit
        file.write_bytes(flipped)
        try:
            return self._looked_at(root, path) or self._read(root) or self._exported(root)
        finally:
            file.write_bytes(whole)

    def _looked_at(self, root: Path, path: Path) -> str:
        def look() -> None:
            self.plant()
            named = [problem.path for problem in verify.verify(root).problems]
            assert path.as_posix() in named, named

        said = self.folder / f"{os.getpid()}-verify"
        status = forked(look, said)
        return "" if status in (0, 2) else f"verify, {status}: {said.read_text()[-800:]}"

    def _read(self, root: Path) -> str:
        said, answer = self.folder / f"{os.getpid()}-read", self.folder / f"{os.getpid()}-answer"

        def ask() -> None:
            self.plant()
            answer.write_text(answers(root))

        answer.unlink(missing_ok=True)
        status = forked(ask, said)
        if status not in (0, 2):
            how = f"signal {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
            return f"readers end with {how}: {said.read_text()[-800:]}"
        return "" if status or answer.read_text() == self.wanted else "another answer"

    def _exported(self, root: Path) -> str:
        said, to = self.folder / f"{os.getpid()}-export", self.folder / f"{os.getpid()}-exported"
        shutil.rmtree(to, ignore_errors=True)

        def work() -> None:
            self.plant()
            export.export(root, RUN, to)

        status = forked(work, said)
        if status not in (0, 2):
            return f"export, {status}: {said.read_text()[-800:]}"
        return "" if status or digests(to) == self.exported else "export wrote damage with valid digests"
