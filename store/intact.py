"""Check that the files of a store are as they were committed, once for each file that is read.

Neither DuckDB nor a Parquet footer would notice a flipped bit, and the answer would be wrong. So the SHA-256 of a file
is compared with its commit record before it is first read. What was found is kept in the user's cache, by size, time of
change and inode: the next process checks again only what has changed. `verify` checks every file, whatever was found.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from store import commits, publish, user_cache
from store.commits import Record
from store.errors import Notice, UsageError

SETTLED = 2.0  # seconds after which another change of a file also changes its time
LONG = 4 << 30  # bytes of files whose check a person is told about


def folder() -> Path:
    """Return where findings are kept."""
    return user_cache.folder("intact")


class Intact:
    """The files that some commit records list, each of which is checked when it is first required."""

    def __init__(self, root: Path, records: Iterable[Record]) -> None:
        self.root = root.resolve()
        self._known = {self.root / file.path: (record.stage, file) for record, file in commits.files_of(records)}
        self._kept = folder() / f"{hashlib.sha256(os.fsencode(self.root)).hexdigest()[:32]}.json"
        self._checked: set[Path] = set()
        self._lock = threading.Lock()

    def require(self, paths: Iterable[Path]) -> None:
        """Raise UsageError unless each file is as it was committed. A file that no record lists is refused too."""
        wanted = [path for path in paths if path not in self._checked]
        if not wanted:
            return
        with self._lock:
            found = user_cache.read(self._kept)
            unknown = [path for path in wanted if found.get(self._name(path)) != self._mark(path)]
            size = sum(self._known[path][1].size for path in unknown)
            if size > LONG:
                warnings.warn(f"checking {size / 1e9:.0f} GB of {self.root}, once", Notice, stacklevel=3)
            fresh = {self._name(path): self._hashed(path) for path in unknown}
            self._checked.update(wanted)
            if fresh:
                self._keep({name: mark for name, mark in fresh.items() if mark is not None})

    def damaged(self, path: Path, why: object) -> UsageError:
        """Return the error for a file of the store that cannot be read as it was committed."""
        stage = f" of the stage {self._known[path][0]}" if path in self._known else ""
        return UsageError(f"{path}{stage} is damaged ({why}): run `unitscope repair {self.root}`")

    def _name(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()

    def _mark(self, path: Path) -> list[Any]:
        """Return what must be the same for the file to be the one that was checked."""
        if path not in self._known:
            raise UsageError(f"{path}: no commit record lists it: see `unitscope verify {self.root}`")
        try:
            status = os.stat(path)
        except OSError as error:
            raise self.damaged(path, error.strerror) from error
        file = self._known[path][1]
        if status.st_size != file.size:
            raise self.damaged(path, f"it has {status.st_size} bytes, and {file.size} were committed")
        return [status.st_size, status.st_mtime_ns, status.st_ino, file.sha256]

    def _hashed(self, path: Path) -> list[Any] | None:
        """Compare a file's digest. Returns its mark, or None if it was changed too short a time ago to be trusted."""
        mark = self._mark(path)
        try:
            found = publish.sha256(path)
        except OSError as error:
            raise self.damaged(path, error.strerror) from error
        if found != mark[-1]:
            raise self.damaged(path, "SHA-256 differs from what was committed")
        return mark if self._mark(path) == mark and time.time() - mark[1] / 1e9 > SETTLED else None

    def _keep(self, fresh: dict[str, list[Any]]) -> None:
        """Add to what is kept. What another process adds meanwhile may be lost."""
        names = {self._name(path) for path in self._known}
        kept = user_cache.read(self._kept) | fresh
        user_cache.write(self._kept, {name: mark for name, mark in kept.items() if name in names})
