"""Atomic publication, and the only place that renames, links, syncs or removes a store's files.

A file is visible when a commit record lists it. Publishing: temporary name, close, fsync, hash, rename, fsync the
directory, then `link()` the record into place. No locks: a link that fails lost a race, and the digests are compared.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from store import layout, views
from store.errors import UsageError

TEMPORARY = ".tmp-"
STALE_SECONDS = 24 * 3600  # for temporaries of other hosts, whose processes cannot be asked


class DisagreementError(UsageError):
    """Two runs of one shard gave different bytes."""


@dataclass(frozen=True)
class File:
    """A published file: path relative to the store, size in bytes, SHA-256 of its contents."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Record:
    """What one shard of one stage published. Immutable."""

    run: str
    stage: str
    shard: str
    fingerprint: str
    files: tuple[File, ...]
    facts: dict[str, Any]  # small results later stages need, e.g. the images a scan shard rejected

    def text(self) -> str:
        return sealed(self.body())

    def body(self) -> dict[str, Any]:
        files = [{"path": f.path, "sha256": f.sha256, "size": f.size} for f in self.files]
        body = {"facts": self.facts, "files": files, "fingerprint": self.fingerprint, "format": layout.FORMAT_VERSION}
        return body | {"run": self.run, "shard": self.shard, "stage": self.stage}


class Publication:
    """Collects the files of one shard under temporary names; `commit` makes them visible together."""

    def __init__(self, root: Path, run: str, stage: str, shard: str, fingerprint: str) -> None:
        self.root, self.run, self.stage, self.shard, self.fingerprint = root, run, stage, shard, fingerprint
        self._pending: dict[str, Path] = {}

    def path(self, relative: str) -> Path:
        """A temporary path to write to; it becomes `relative` on commit."""
        final = self.root / relative
        final.parent.mkdir(parents=True, exist_ok=True)
        self._pending[relative] = _temporary(final)
        return self._pending[relative]

    def commit(self, facts: dict[str, Any] | None = None, gone: Iterable[File] = ()) -> Record:
        """`gone`: partials that a copied record lists and nobody needs any more."""
        written = [
            File(relative, temporary.stat().st_size, _sync_and_hash(temporary))
            for relative, temporary in self._pending.items()
        ]
        files = tuple(sorted([*written, *gone], key=lambda file: file.path))
        new = Record(self.run, self.stage, self.shard, self.fingerprint, files, facts or {})
        place = self.root / layout.record(self.run, self.stage, self.shard)
        if place.exists():
            self.discard()
            return _same(place, new)
        for relative, temporary in self._pending.items():
            os.replace(temporary, self.root / relative)
        for folder in sorted({(self.root / relative).parent for relative in self._pending}):
            _sync_folder(folder)
        self._pending.clear()
        return _link(place, new)

    def discard(self) -> None:
        for temporary in self._pending.values():
            temporary.unlink(missing_ok=True)
        self._pending.clear()

    def __enter__(self) -> Publication:
        return self

    def __exit__(self, *_: object) -> None:
        self.discard()


def write_manifest(root: Path) -> None:
    """Rewrites `manifest.json`, the sorted union of all commit records, and `views.sql`."""
    found = records(root)
    replace_text(root / layout.VIEWS, views_text(found))
    replace_text(root / layout.MANIFEST, manifest_text(found))


def views_text(found: Iterable[Record]) -> str:
    return views.script(file.path for _, file in files_of(found))


def manifest_text(found: Iterable[Record]) -> str:
    return sealed({"format": layout.FORMAT_VERSION, "records": [record.body() for record in found]})


def ensure_store(root: Path) -> None:
    """Makes an empty store, or checks that what is there is a store this version can write."""
    manifest = root / layout.MANIFEST
    if not manifest.exists():
        root.mkdir(parents=True, exist_ok=True)
        if any(
            p.name not in (layout.COMMITS, layout.LOGS, layout.VIEWS) and not p.name.startswith(TEMPORARY)
            for p in root.iterdir()
        ):
            raise UsageError(f"{root} is neither empty nor a unitscope store: choose another --store")
        replace_text(manifest, manifest_text([]))
    check_version(root)


def check_version(root: Path) -> None:
    """Raises UsageError where `root` is no store, or a store of another format version."""
    manifest = root / layout.MANIFEST
    try:
        found = json.loads(manifest.read_text())["format"]
    except FileNotFoundError:
        raise UsageError(
            f"{root} is no unitscope store (it has no {layout.MANIFEST}): run `unitscope run CONFIG` first"
        ) from None
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise UsageError(f"{manifest} cannot be read ({error}): see `unitscope verify {root}`") from error
    if found != layout.FORMAT_VERSION:
        raise UsageError(
            f"{root} is a store of format {found}, this unitscope reads format {layout.FORMAT_VERSION}: "
            "use the version that wrote it, or make the store again"
        )


def committed(root: Path, run: str, stage: str) -> set[str]:
    """Names of the committed shards of a stage, without reading the records."""
    found = (root / layout.COMMITS / run / stage).glob("*.json")
    return {path.stem for path in found if not path.name.startswith(TEMPORARY)}


def records(root: Path, run: str | None = None, stage: str | None = None) -> list[Record]:
    """The commit records, sorted by run, stage and shard."""
    folder = root / layout.COMMITS
    found = []
    for path in sorted(folder.glob(f"{run or '*'}/{stage or '*'}/*.json")):
        if not path.name.startswith(TEMPORARY):
            found.append(read_record(path))
    return found


def read_record(path: Path) -> Record:
    try:
        body = json.loads(path.read_text())
        files = tuple(File(f["path"], f["size"], f["sha256"]) for f in body["files"])
        return Record(body["run"], body["stage"], body["shard"], body["fingerprint"], files, body["facts"])
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"commit record {path} is damaged ({error}): see `unitscope verify`") from error


def find_record(root: Path, run: str, stage: str, shard: str) -> Record | None:
    path = root / layout.record(run, stage, shard)
    return read_record(path) if path.exists() else None


def remove_record(root: Path, record: Record) -> None:
    """Forgets a shard, so that the next run computes it again (`repair`)."""
    (root / layout.record(record.run, record.stage, record.shard)).unlink(missing_ok=True)


def remove_damaged(root: Path, relative: str) -> None:
    """Removes a commit record that can no longer be read."""
    (root / relative).unlink(missing_ok=True)


def remove_partials(root: Path, run: str, stages: Iterable[str]) -> None:
    """Takes away what only later shards needed, once the last of them is committed."""
    folder = root / "runs" / run / layout.PARTIALS
    for stage in stages:
        shutil.rmtree(folder / stage, ignore_errors=True)
    if folder.exists() and not any(folder.iterdir()):
        folder.rmdir()


def remove_orphans(root: Path, run: str) -> None:
    """Removes temporaries of files that are published: their makers died, or lost the race and will find out."""
    folders = (root / "runs" / run, root / "datasets")
    found = [path for folder in folders for path in folder.rglob(f"{TEMPORARY}*")]
    if not found:
        return
    published = {root / file.path for record in records(root, run) for file in record.files}
    for path in found:
        if path.with_name(path.name.rpartition("~")[2]) in published:
            path.unlink(missing_ok=True)


def remove_stale_temporaries(root: Path) -> None:
    """Removes what killed processes left: this host's dead ones at once, other hosts' after a day."""
    for path in list(root.rglob(f"{TEMPORARY}*")):
        host, _, rest = path.name.removeprefix(TEMPORARY).partition("~")
        process = rest.partition("~")[0]
        try:
            old = time.time() - path.stat().st_mtime > STALE_SECONDS
        except FileNotFoundError:
            continue
        if old or (host == _host() and process.isdigit() and not _alive(int(process))):
            path.unlink(missing_ok=True)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary place to write a file of any kind at; it appears under its name when it is whole."""
    temporary = _temporary(path)
    try:
        yield temporary
        _sync(temporary)
        os.replace(temporary, path)
        _sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def replace_text(path: Path, text: str) -> None:
    """Writes a small file whole: readers see the old text or the new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as temporary:
        temporary.write_text(text)


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sealed(body: dict[str, Any]) -> str:
    """JSON that carries the SHA-256 of its own body, so that a flipped bit in it is noticed."""
    return _dumps(body | {"seal": hashlib.sha256(_dumps(body).encode()).hexdigest()})


def is_sealed(text: str) -> bool:
    """Whether a text is, byte for byte, what `sealed` gave."""
    try:
        body = json.loads(text)
        body.pop("seal")
    except (ValueError, KeyError, AttributeError, TypeError):
        return False
    return text == sealed(body)


def _dumps(body: object) -> str:
    return json.dumps(body, sort_keys=True, indent=1, ensure_ascii=False) + "\n"


def files_of(found: Iterable[Record]) -> Iterator[tuple[Record, File]]:
    return ((record, file) for record in found for file in record.files)


def _temporary(final: Path) -> Path:
    return final.with_name(f"{TEMPORARY}{_host()}~{os.getpid()}~{secrets.token_hex(4)}~{final.name}")


def _host() -> str:
    return socket.gethostname().replace("~", "-")


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _sync_and_hash(path: Path) -> str:
    _sync(path)
    return sha256(path)


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _link(place: Path, new: Record) -> Record:
    place.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(place)
    temporary.write_text(new.text())
    _sync(temporary)
    try:
        os.link(temporary, place)
    except FileExistsError:
        return _same(place, new)
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(place.parent)
    return new


def _same(place: Path, new: Record) -> Record:
    old = read_record(place)
    if old.text() != new.text():
        raise DisagreementError(
            f"{place} was committed by another process with other contents: two runs of one shard must agree; "
            "are both on the same kind of processor and the same versions? `unitscope repair` makes it whole"
        )
    return old
