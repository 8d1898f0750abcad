"""Commit records: what a store holds, shard by shard. This module reads them; `store.publish` writes them."""

from __future__ import annotations

import glob
import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from store import containment, intents, layout, regular_file, stages
from store.errors import UsageError

MOST_BYTES = 1 << 28  # of a commit record or a manifest


@dataclass(frozen=True)
class File:
    """A published file: its path relative to the store, its size in bytes and the SHA-256 of its contents."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Record:
    """The commit record of one shard of one stage: the files that it published. Immutable."""

    run: str
    stage: str
    shard: str
    fingerprint: str
    files: tuple[File, ...]
    facts: dict[str, Any]  # small results that later stages need, e.g. the images that a scan shard rejected

    def text(self) -> str:
        return sealed(self.body())

    def body(self) -> dict[str, Any]:
        files = [{"path": f.path, "sha256": f.sha256, "size": f.size} for f in self.files]
        body = {"facts": self.facts, "files": files, "fingerprint": self.fingerprint, "format": layout.FORMAT_VERSION}
        return body | {"run": self.run, "shard": self.shard, "stage": self.stage}


def committed(root: Path, run: str, stage: str) -> set[str]:
    """Return the names of a stage's committed shards, without reading the records."""
    paths = (root / layout.COMMITS / run / stage).glob("*.json")
    return {path.stem for path in paths if not path.name.startswith(intents.TEMPORARY)}


def run_names(root: Path) -> list[str]:
    """Return the names of the runs that have begun, sorted, without reading a record."""
    folder = root / layout.COMMITS
    return sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []


def records(root: Path, run: str | None = None, stage: str | None = None) -> list[Record]:
    """Read the commit records, of one run or stage if given, sorted by run, stage and shard.

    Raises UsageError if one is not what belongs at its place, or if a link is on the way to it or to one of its files.
    """
    found = places(root, run, stage)
    containment.refuse_links(root, found)
    commits = [read_record(root, place) for place in found]
    containment.refuse_links(root, (file.path for _, file in files_of(commits)))
    return commits


def places(root: Path, run: str | None = None, stage: str | None = None) -> list[str]:
    if (run is not None and not containment.is_run(run)) or (stage is not None and stage not in stages.NAMES):
        return []
    pattern = "/".join(glob.escape(name) if name else "*" for name in (run, stage))
    found = sorted((root / layout.COMMITS).glob(f"{pattern}/*.json"))
    return [path.relative_to(root).as_posix() for path in found if not path.name.startswith(intents.TEMPORARY)]


def all_records(root: Path) -> list[Record]:
    """Read all commit records. Raises UsageError if the manifest lists any that are gone, as `records` does not."""
    commits = records(root)
    gone = vanished(root, commits)
    if gone:
        raise UsageError(
            f"{root / layout.MANIFEST} lists {len(gone)} commit record(s) that {'are' if len(gone) > 1 else 'is'} "
            f"gone, the first {gone[0]}: put them back, or see `unitscope verify {root}`"
        )
    return commits


def vanished(root: Path, commits: Iterable[Record]) -> list[str]:
    """Return the places of the records that the manifest lists and that are not among these."""
    return sorted(listed(root).keys() - {layout.record(r.run, r.stage, r.shard) for r in commits})


def listed(root: Path) -> dict[str, dict[str, Any]]:
    """Return the valid records in the manifest by their places. If the manifest is damaged, there are none."""
    try:
        text = regular_file.read(root / layout.MANIFEST, MOST_BYTES).decode()
        bodies = json.loads(text)["records"] if is_sealed(text) else []
        found = {layout.record(body["run"], body["stage"], body["shard"]): body for body in bodies}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}
    return {p: body for p, body in found.items() if containment.fault_of_record(body, PurePosixPath(p)) is None}


def read_record(root: Path, place: str, checked: bool = True) -> Record:
    """Read the commit record at a place relative to the root. Raises UsageError if it is not what belongs there."""
    try:
        text = regular_file.read(root / place, MOST_BYTES).decode()
        body = json.loads(text)
        fault = containment.fault_of_record(body, PurePosixPath(place)) if checked else None
        if checked and fault is None and not is_sealed(text):
            fault = "its text is not what was written"
        if fault is None:
            files = tuple(File(f["path"], f["size"], f["sha256"]) for f in body["files"])
            return Record(body["run"], body["stage"], body["shard"], body["fingerprint"], files, body["facts"])
    except (ValueError, OSError, RecursionError, KeyError, TypeError) as error:
        fault = str(error)
    raise UsageError(f"commit record {root / place} is damaged ({fault}): see `unitscope verify`")


def find_record(root: Path, run: str, stage: str, shard: str) -> Record | None:
    place = layout.record(run, stage, shard)
    containment.refuse_links(root, [place])
    return read_record(root, place) if (root / place).exists() else None


def sealed(body: dict[str, Any]) -> str:
    """Return `body` as JSON with the SHA-256 of its own text as `seal`, so that a flipped bit is noticed."""
    return _dumps(body | {"seal": hashlib.sha256(_dumps(body).encode()).hexdigest()})


def is_sealed(text: str) -> bool:
    """Return whether a text is, byte for byte, what `sealed` returned."""
    try:
        body = json.loads(text)
        body.pop("seal")
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        return False
    return text == sealed(body)


def _dumps(body: object) -> str:
    return json.dumps(body, sort_keys=True, indent=1, ensure_ascii=False) + "\n"


def files_of(commits: Iterable[Record]) -> Iterator[tuple[Record, File]]:
    return ((record, file) for record in commits for file in record.files)
