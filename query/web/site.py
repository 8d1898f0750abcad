"""A store as the page shows it: opened once, and again when more of it has been committed."""

from __future__ import annotations

import hashlib
import math
import threading
import time
from pathlib import Path

import query
from query.record.dense import Dense
from query.record.run_tables import Layer
from query.record.unit import Unit
from query.scope import Scope
from query.sql.database import Limits
from query.web.errors import not_found
from store import commits, layout, stages, status
from store.errors import UsageError, did_you_mean, shortened

LOOK_AGAIN = 1.0  # seconds between two looks at what is committed


class Site:
    """Answer for a store. Every request asks for `scope` anew, so that what is committed meanwhile shows."""

    def __init__(self, root: Path, model_code: bool = False, limits: Limits | None = None) -> None:
        self.root, self._model_code = root, model_code
        self._limits = limits or Limits()
        self._lock = threading.Lock()
        self._scope = self._open()
        self._state, self._looked = committed(root), time.monotonic()
        self._progress: tuple[float, dict[str, list[status.StageProgress]]] = (-math.inf, {})
        self.trouble = ""  # why the store could not be opened again

    @property
    def scope(self) -> Scope:
        """The store as it is now, or was a second ago. If it can no longer be read, as it was when it could.

        `trouble` then says why.
        """
        if time.monotonic() - self._looked > LOOK_AGAIN and self._lock.acquire(blocking=False):
            try:
                state = committed(self.root)
                if state != self._state:  # requests that still use the old one keep it alive
                    opened = self._open()
                    opened.take_models_of(self._scope)
                    self._scope, self._state = opened, state
                self.trouble = ""
            except (UsageError, OSError) as error:
                self.trouble = str(error)
            finally:
                self._looked = time.monotonic()
                self._lock.release()
        return self._scope

    def progress(self) -> dict[str, list[status.StageProgress]]:
        """Return how far each stage of each run is, now or two seconds ago. Empty while the store cannot be read."""
        when, found = self._progress
        if time.monotonic() - when > LOOK_AGAIN * 2:
            try:
                found = status.progress(self.root)
            except UsageError:
                found = {}
            self._progress = time.monotonic(), found
        return found

    def record(self, run_name: str) -> Dense:
        """Return a run that has folded, by its name. Raises PageError."""
        records = self.scope.records
        if run_name not in records:
            if run_name in commits.run_names(self.root):
                raise not_found(f"run {run_name} is still being scanned: its pages come when it has folded")
            hint = did_you_mean(run_name, records) or "the first page lists all runs"
            raise not_found(f"no run {shortened(run_name)!r} in this store: {hint}")
        return records[run_name]

    def layer(self, run_name: str, layer_name: str) -> tuple[Dense, Layer]:
        """Return a layer of a run. Raises PageError."""
        dense = self.record(run_name)
        if layer_name not in dense.run.by_name:
            hint = did_you_mean(layer_name, dense.run.by_name) or "the architecture lists all layers"
            raise not_found(f"run {run_name} has no layer {shortened(layer_name)!r}: {hint}")
        return dense, dense.run.by_name[layer_name]

    def unit(self, run_name: str, layer_name: str, channel: str) -> tuple[Dense, Unit]:
        """Return a unit of a run. Raises PageError."""
        dense, layer = self.layer(run_name, layer_name)
        number = whole(channel)
        if number is None or number >= layer.channels:
            raise not_found(f"layer {layer_name} has channels 0 to {layer.channels - 1}, not {shortened(channel)!r}")
        return dense, Unit(dense.run, layer, number)

    def close(self) -> None:
        self._scope.close()

    def _open(self) -> Scope:
        return query.open(self.root, model_code=self._model_code, limits=self._limits)


def whole(text: str) -> int | None:
    """Return the whole number that at most nine plain digits write, else None."""
    plain = text.isascii() and text.isdecimal() and len(text) <= 9 and str(int(text)) == text
    return int(text) if plain else None


def committed(root: Path) -> str:
    """Return a digest of what is committed and may be read: it changes when an answer may.

    Of a stage whose files other shards read first, only the last shard counts, unless they are shown before.
    """
    seen = hashlib.sha256()
    for run in commits.run_names(root):
        for stage in stages.STAGES:
            names = commits.committed(root, run, stage.name)
            counted = names if stage.shown_early or not stage.consumer else names & {stage.last}
            for shard in sorted(counted):
                record = (root / layout.record(run, stage.name, shard)).stat()
                seen.update(
                    f"{run} {stage.name} {shard} {record.st_ino} {record.st_mtime_ns} {record.st_size}\n".encode()
                )
    return seen.hexdigest()
