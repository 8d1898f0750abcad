"""Atomic publication. Only this module and `store.housekeeping` rename, link, sync or remove a store's files.

A file counts as published once a commit record lists it. To publish: write under a temporary name, close, fsync, hash,
announce what will be published (`store.intents`), rename, fsync the directories, then `link()` the record into place.
There are no locks: if the link fails because the record exists, another process was faster, and the two records, with
the digests in them, are compared.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

from store import commits, containment, intents, layout, regular_file, views
from store.commits import (
    File,
    Record,
    all_records,
    committed,
    files_of,
    find_record,
    is_sealed,
    read_record,
    records,
    sealed,
    vanished,
)
from store.errors import UsageError
from store.housekeeping import remove_orphans, remove_partials, remove_stale_temporaries

# Scripts outside the project know records and housekeeping under this module's name.
__all__ = [
    "File", "Record", "all_records", "committed", "files_of", "find_record", "is_sealed", "read_record", "records",
    "remove_orphans", "remove_partials", "remove_stale_temporaries", "sealed", "vanished",
]  # fmt: skip

TEMPORARY = intents.TEMPORARY
_synced_entries: set[tuple[str, int, int]] = set()  # folders by path, device and inode

# Failures to write that a person has to see to. Trying again elsewhere would not help.
_UNWRITABLE = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EFBIG, errno.EACCES, errno.EPERM, errno.ENAMETOOLONG}
)


class DisagreementError(UsageError):
    """Two computations of the same shard gave different results."""


class Publication:
    """Collects the files of one shard under temporary names; `commit` makes them visible together."""

    def __init__(
        self,
        root: Path,
        run: str,
        stage: str,
        shard: str,
        fingerprint: str,
        confirm: Callable[[], object] = lambda: None,
    ) -> None:
        """Begin to publish a shard.

        `confirm` is called after the announcement, before the files become visible. It raises UsageError if the shard
        must not be published.
        """
        self.root, self.run, self.stage, self.shard, self.fingerprint = root, run, stage, shard, fingerprint
        self.confirm = confirm
        self._pending: dict[str, Path] = {}

    def path(self, relative: str) -> Path:
        """Return a temporary path to write to; `commit` renames it to `relative`.

        Raises UsageError if that is not a path of the store, or if a link is on the way to it.
        """
        fault = containment.fault_of_path(relative)
        if fault is not None:
            raise UsageError(fault)
        containment.refuse_links(self.root, [relative])
        final = self.root / relative
        _make_folders(final.parent)
        self._pending[relative] = intents.temporary(final)
        return self._pending[relative]

    def commit(self, facts: dict[str, Any] | None = None, gone: Iterable[File] = ()) -> Record:
        """Publish the files and their record, and return the record.

        If the shard is committed already, the new files are discarded and the existing record is returned. Raises
        DisagreementError if that record differs. `gone`: partials that a copied record lists but that are not copied.
        """
        written = [
            File(relative, temporary.stat().st_size, _sync_and_hash(temporary))
            for relative, temporary in self._pending.items()
        ]
        files = tuple(sorted([*written, *gone], key=lambda file: file.path))
        new = Record(self.run, self.stage, self.shard, self.fingerprint, files, facts or {})
        place = layout.record(self.run, self.stage, self.shard)
        containment.refuse_links(self.root, [place])
        if (self.root / place).exists():
            self.discard()
            return _same(self.root, place, new)
        with self._announced(place, new):
            if (self.root / place).exists():
                self.discard()
                return _same(self.root, place, new)
            self.confirm()
            for relative, temporary in self._pending.items():
                os.replace(temporary, self.root / relative)
            for folder in sorted({(self.root / relative).parent for relative in self._pending}):
                _sync_upward(self.root, folder)
            self._pending.clear()
            return _link(self.root, place, new)

    @contextmanager
    def _announced(self, place: str, new: Record) -> Iterator[None]:
        """Announce the record, and the files of a dataset, which several runs can publish at the same time."""
        shared = [file for file in new.files if file.path.startswith("datasets/")]
        folders = sorted({(self.root / file.path).parent for file in shared})
        text = "\n".join(f"{file.path} {file.sha256}" for file in shared)
        record_path = self.root / place
        _make_folders(record_path.parent)
        try:
            with ExitStack() as stack:
                stack.enter_context(intents.announced(record_path.parent, record_path.name, new.text()))
                for folder in folders:
                    stack.enter_context(intents.announced(folder, "dataset", text))
                yield
        except intents.OtherIntentError as error:
            raise DisagreementError(
                f"{self.root}: the process {error} is publishing other contents of {place} now: when it has ended, run "
                "again"
            ) from error

    def discard(self) -> None:
        for temporary in self._pending.values():
            temporary.unlink(missing_ok=True)
        self._pending.clear()

    def __enter__(self) -> Publication:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        written = sum(path.stat().st_size for path in self._pending.values() if path.exists())
        self.discard()
        if isinstance(error, OSError) and error.errno in _UNWRITABLE:
            where = error.filename or self.root / layout.record(self.run, self.stage, self.shard)
            raise UsageError(
                f"{where} cannot be written ({os.strerror(error.errno)}), after {written} bytes of this shard: make "
                "room, or see to the disk, and run again; what is committed is not touched"
            ) from error


def write_manifest(root: Path) -> None:
    """Rewrite `manifest.json`, the sorted union of all commit records.

    Another process may commit a record meanwhile and write its own manifest first. So this one looks again at what is
    there, until it has written all of it: whoever writes last leaves a manifest that lacks nothing.
    """
    while True:
        places = commits.places(root)
        # Whoever reads the store checks what the records say; the manifest only repeats it.
        found = [commits.read_record(root, place, checked=False) for place in places if (root / place).exists()]
        replace_text(root / layout.MANIFEST, manifest_text(found))
        if commits.places(root) == places:
            return


def manifest_text(records: Iterable[Record]) -> str:
    return commits.sealed({"format": layout.FORMAT_VERSION, "records": [record.body() for record in records]})


def ensure_store(root: Path) -> None:
    """Create an empty store, or check that `root` is a store that this version can write.

    Raises UsageError if `root` holds other files or a store of another format version, or as `check_path` does.
    """
    check_path(root)
    manifest = root / layout.MANIFEST
    if not manifest.exists():
        _make_folders(root)
        if any(
            p.name not in (layout.COMMITS, layout.LOGS) and not p.name.startswith(TEMPORARY) for p in root.iterdir()
        ):
            raise UsageError(f"{root} is neither empty nor a unitscope store: choose another --store")
        replace_text(manifest, manifest_text([]))
    check_version(root)


def check_path(root: Path) -> None:
    """Raise UsageError if DuckDB could not read a store in this folder, so that none is filled there."""
    text = str(root.resolve())
    views.pattern(text)
    if any("\udc80" <= character <= "\udcff" for character in text):  # how Python spells bytes that are no UTF-8
        raise UsageError(f"{text.encode('utf-8', 'replace').decode()}: the path is no UTF-8: move the store elsewhere")


def check_version(root: Path) -> None:
    """Raise UsageError if `root` is not a store, or is a store of another format version."""
    manifest = root / layout.MANIFEST
    try:
        version = json.loads(regular_file.read(manifest, commits.MOST_BYTES).decode())["format"]
    except FileNotFoundError:
        raise UsageError(
            f"{root} is no unitscope store (it has no {layout.MANIFEST}): run `unitscope run CONFIG` first"
        ) from None
    except (ValueError, KeyError, TypeError, OSError, RecursionError) as error:
        raise UsageError(f"{manifest} cannot be read ({error}): see `unitscope verify {root}`") from error
    if version != layout.FORMAT_VERSION:
        raise UsageError(
            f"{root} is a store of format {version}, but this unitscope reads format {layout.FORMAT_VERSION}: "
            "use the version that wrote it, or make the store again"
        )


def restore_record(root: Path, place: str) -> bool:
    """Write a commit record that is damaged or gone again, from the manifest's copy. Returns whether it has one."""
    body = commits.listed(root).get(place)
    if body is None:
        return False
    containment.refuse_links(root, [place])
    replace_text(root / place, commits.sealed(body))
    return True


def remove_record(root: Path, record: Record) -> None:
    """Remove a shard's commit record, so that the next run computes the shard again (used by `repair`)."""
    containment.refuse_links(root, [layout.record(record.run, record.stage, record.shard)])
    (root / layout.record(record.run, record.stage, record.shard)).unlink(missing_ok=True)


def remove_damaged(root: Path, relative: str) -> None:
    """Remove a commit record that can no longer be read. Raises UsageError if it lies where none can."""
    if not containment.is_place(relative):
        raise UsageError(f"{root}: {relative} is no place of a commit record: remove it yourself")
    containment.refuse_links(root, [relative])
    (root / relative).unlink(missing_ok=True)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give a temporary path to write a file to, and rename it to `path` once it is complete and synced."""
    temporary = intents.temporary(path)
    try:
        yield temporary
        _sync(temporary)
        os.replace(temporary, path)
        _sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def replace_text(path: Path, text: str) -> None:
    """Replace a small file atomically: readers see either the old text or the new."""
    _make_folders(path.parent)
    with whole_file(path) as temporary:
        temporary.write_text(text)


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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


def _make_folders(folder: Path) -> None:
    """Make a folder and those above it, each of which is synced into the one that holds it."""
    missing = [folder, *folder.parents]
    for made in reversed(missing[: next(i for i, above in enumerate(missing) if above.exists())]):
        made.mkdir(exist_ok=True)
        _sync_folder(made.parent)


def _sync_upward(root: Path, folder: Path) -> None:
    """Sync a folder of a store, and its entry in the folder above it, and so on up to the root.

    Another process may have made these folders just now. An entry that this process has synced lasts as long as the
    folder, so it is not synced again.
    """
    _sync_folder(folder)
    upward = [folder, *folder.parents]
    for below, above in pairwise(upward[: upward.index(root) + 1]):
        status = below.stat()
        entry = (str(below.absolute()), status.st_dev, status.st_ino)
        if entry not in _synced_entries:
            _sync_folder(above)
            _synced_entries.add(entry)


def _link(root: Path, place: str, new: Record) -> Record:
    record_path = root / place
    temporary = intents.temporary(record_path)
    temporary.write_text(new.text())
    _sync(temporary)
    try:
        os.link(temporary, record_path)
    except FileExistsError:
        return _same(root, place, new)
    finally:
        temporary.unlink(missing_ok=True)
    _sync_upward(root, record_path.parent)
    return new


def _same(root: Path, place: str, new: Record) -> Record:
    old = commits.read_record(root, place)
    if old.text() != new.text():
        raise DisagreementError(
            f"{root / place} was committed by another process with other contents, but two runs of one shard must "
            "agree: use the same kind of processor and the same versions on all machines, then `unitscope repair`"
        )
    return old
