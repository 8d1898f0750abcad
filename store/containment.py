"""What a store may name: itself. Stores are handed around, so nothing in one is believed about where it lies.

A commit record lies at the place that it names. Its files are relative paths under `datasets/` or `runs/`, and no link
is on the way to them. This is checked where records are read, and again where files are written.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

from store import layout, stages
from store.errors import UsageError

TOPS = ("datasets", "runs")
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")  # of a model or a dataset
_SHARD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_INDEX_FACTS = ("config", "dataset", "digest", "listing", "model", "weights")
_DIGEST = re.compile(r"[0-9a-f]{64}")


def is_run(name: object) -> bool:
    """Whether a name is MODEL@DATASET, each of which is a name of a run's part and no path."""
    parts = name.split("@") if isinstance(name, str) else []
    return len(parts) == 2 and all(map(_NAME.fullmatch, parts))


def is_place(place: str) -> bool:
    """Whether a path relative to the store is one at which a commit record can lie."""
    parts = place.split("/")
    if len(parts) != 4 or parts[0] != layout.COMMITS or parts[2] not in stages.NAMES:
        return False
    shard = _SHARD.fullmatch(parts[3].removesuffix(".json"))
    return is_run(parts[1]) and parts[3].endswith(".json") and shard is not None


def fault_of_record(body: Any, place: PurePosixPath) -> str | None:
    """Return what is wrong with a commit record that was read at a place relative to the store, or None."""
    if not isinstance(body, dict):
        return "it is no JSON object"
    run, stage, shard = (body.get(key) for key in ("run", "stage", "shard"))
    if not isinstance(run, str) or not is_run(run):
        return f"its run {run!r} is not MODEL@DATASET"
    if stage not in stages.NAMES:
        return f"its stage {stage!r} is unknown"
    if not isinstance(shard, str) or not _SHARD.fullmatch(shard):
        return f"its shard {shard!r} is no name"
    if place != PurePosixPath(layout.record(run, stage, shard)):
        return f"it belongs at {layout.record(run, stage, shard)}"
    if not isinstance(body.get("fingerprint"), str) or not isinstance(body.get("facts"), dict):
        return "its fingerprint or its facts are of another type"
    files = body.get("files")
    if not isinstance(files, list):
        return "its files are no list"
    return next(filter(None, map(_fault_of_file, files)), None) or _fault_of_facts(stage, run, body["facts"])


def _fault_of_facts(stage: str, run: str, facts: dict[str, Any]) -> str | None:
    """Return what is wrong with the facts that later stages read, or None."""
    if stage == "index":
        wrong = [key for key in _INDEX_FACTS if not isinstance(facts.get(key, ""), str)]
        if wrong:
            return f"its fact {wrong[0]!r} is no text"
        if facts.get("dataset", run.partition("@")[2]) != run.partition("@")[2]:
            return f"its dataset {facts['dataset']!r} is not that of its run"
    if stage == "scan":
        rejected = facts.get("rejected", [])
        pairs = rejected if isinstance(rejected, list) else [None]
        if not all(isinstance(p, list) and [type(v) for v in p] == [int, str] for p in pairs):
            return "its rejected pictures are no list of numbers with reasons"
    return None


def _fault_of_file(file: Any) -> str | None:
    if not isinstance(file, dict):
        return f"its file {file!r} is no JSON object"
    size, digest = file.get("size"), file.get("sha256")
    if isinstance(size, bool) or not isinstance(size, int) or size < 0:
        return f"its file {file.get('path')!r} has the size {size!r}"
    if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        return f"its file {file.get('path')!r} has no SHA-256"
    return fault_of_path(file.get("path"))


def fault_of_path(path: Any) -> str | None:
    """Return what is wrong with the path of a file of a store, relative to its root, or None."""
    if not isinstance(path, str):
        return f"the path {path!r} is no text"
    parts = path.split("/")
    if len(parts) < 2 or parts[0] not in TOPS or any(part in ("", ".", "..") for part in parts):
        return f"the path {path!r} lies outside the store's {' and '.join(f'{top}/' for top in TOPS)}"
    if not path.isprintable() or "\\" in path:
        return f"the path {path!r} has signs that no path of a store has"
    return None


def refuse_links(root: Path, paths: Iterable[str]) -> None:
    """Raise UsageError if a file of a store is a link, or lies behind one. Paths are relative and may not exist."""
    seen: set[str] = set()
    for path in paths:
        link = link_on_the_way(root, path, seen)
        if link is not None:
            raise UsageError(
                f"{root / link} is a link, which can lead outside the store: see `unitscope verify {root}`"
            )


def link_on_the_way(root: Path, path: str, seen: set[str] | None = None) -> str | None:
    """Return the first part of the way from the root to a file, with the file, that is a link; None if none is.

    `seen`: parts that are known to be none, to which those of this way are added.
    """
    known = set[str]() if seen is None else seen
    parts = path.split("/")
    for count in range(1, len(parts) + 1):
        part = "/".join(parts[:count])
        if part in known:
            continue
        try:
            if stat.S_ISLNK(os.lstat(root / part).st_mode):
                return part
        except FileNotFoundError:
            return None
        known.add(part)
    return None
