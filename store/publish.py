"""Atomic publication. Only this module renames, links, syncs or removes a store's files.

A file counts as published once a commit record lists it. To publish: write under a temporary name, close, fsync, hash,
announce what will be published (`store.intents`), rename, fsync the directories, then `link()` the record into place.
There are no locks: if the link fails because the record exists, another process was faster, and the two records, with
the digests in them, are compared.
"""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from store import containment, intents, layout, regular_file, views
from store.errors import UsageError

TEMPORARY = intents.TEMPORARY
MOST_BYTES = 1 << 28  # of a commit record or a manifest
STALE_SECONDS = 24 * 3600  # age at which temporaries are removed if their process cannot be checked (other hosts)


# Failures to write that a person has to see to. Trying again elsewhere would not help.
_UNWRITABLE = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EFBIG, errno.EACCES, errno.EPERM, errno.ENAMETOOLONG}
)


class DisagreementError(UsageError):
    """Two computations of the same shard gave different results."""


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
    """Rewrite `manifest.json`, the sorted union of all commit records, and `views.sql`."""
    # Whoever reads the store checks what the records say; the manifest only repeats it.
    commits = [read_record(root, place, checked=False) for place in _places(root)]
    replace_text(root / layout.VIEWS, views_text(commits))
    replace_text(root / layout.MANIFEST, manifest_text(commits))


def views_text(commits: Iterable[Record]) -> str:
    return views.script(file.path for _, file in files_of(commits))


def manifest_text(commits: Iterable[Record]) -> str:
    return sealed({"format": layout.FORMAT_VERSION, "records": [record.body() for record in commits]})


def ensure_store(root: Path) -> None:
    """Create an empty store, or check that `root` is a store that this version can write.

    Raises UsageError if `root` holds other files or a store of another format version, or as `check_path` does.
    """
    check_path(root)
    manifest = root / layout.MANIFEST
    if not manifest.exists():
        _make_folders(root)
        if any(
            p.name not in (layout.COMMITS, layout.LOGS, layout.VIEWS) and not p.name.startswith(TEMPORARY)
            for p in root.iterdir()
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
        version = json.loads(regular_file.read(manifest, MOST_BYTES).decode())["format"]
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


def committed(root: Path, run: str, stage: str) -> set[str]:
    """Return the names of a stage's committed shards, without reading the records."""
    paths = (root / layout.COMMITS / run / stage).glob("*.json")
    return {path.stem for path in paths if not path.name.startswith(TEMPORARY)}


def records(root: Path, run: str | None = None, stage: str | None = None) -> list[Record]:
    """Read the commit records, of one run or stage if given, sorted by run, stage and shard.

    Raises UsageError if one is not what belongs at its place, or if a link is on the way to it or to one of its files.
    """
    places = _places(root, run, stage)
    containment.refuse_links(root, places)
    commits = [read_record(root, place) for place in places]
    containment.refuse_links(root, (file.path for _, file in files_of(commits)))
    return commits


def _places(root: Path, run: str | None = None, stage: str | None = None) -> list[str]:
    pattern = "/".join(glob.escape(name) if name else "*" for name in (run, stage))
    found = sorted((root / layout.COMMITS).glob(f"{pattern}/*.json"))
    return [path.relative_to(root).as_posix() for path in found if not path.name.startswith(TEMPORARY)]


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
    return sorted(_listed(root).keys() - {layout.record(r.run, r.stage, r.shard) for r in commits})


def restore_record(root: Path, place: str) -> bool:
    """Write a commit record that is damaged or gone again, from the manifest's copy. Returns whether it has one."""
    body = _listed(root).get(place)
    if body is None:
        return False
    containment.refuse_links(root, [place])
    replace_text(root / place, sealed(body))
    return True


def _listed(root: Path) -> dict[str, dict[str, Any]]:
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
        body = json.loads(regular_file.read(root / place, MOST_BYTES).decode())
        fault = containment.fault_of_record(body, PurePosixPath(place)) if checked else None
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


def remove_partials(root: Path, run: str, stages: Iterable[str]) -> None:
    """Remove the partials of these stages. Call it once the shard that consumes them is committed."""
    folder = root / "runs" / run / layout.PARTIALS
    containment.refuse_links(root, [f"runs/{run}/{layout.PARTIALS}"])
    for stage in stages:
        for _ in range(2):  # a file system can fail once
            shutil.rmtree(folder / stage, ignore_errors=True)
    if folder.exists() and not any(folder.iterdir()):
        folder.rmdir()


def remove_orphans(root: Path, run: str) -> None:
    """Remove temporaries of files that are already published, and announcements of records that are there.

    The process that wrote one has died, or another published the same file first and it will notice that on commit.
    """
    for folder in (root / layout.COMMITS / run, root / "datasets"):
        for path in list(folder.rglob(f"{intents.PREFIX}*")):
            if path.with_name(path.name.removeprefix(intents.PREFIX)).exists() or intents.is_abandoned(path):
                path.unlink(missing_ok=True)
    folders = (root / "runs" / run, root / "datasets", root / layout.COMMITS / run)
    temporaries = [path for folder in folders for path in folder.rglob(f"{TEMPORARY}*")]
    if not temporaries:
        return
    published = {root / file.path for record in records(root, run) for file in record.files}
    published |= {root / place for place in _places(root, run)}
    for path in temporaries:
        if path.with_name(path.name.rpartition("~")[2]) in published:
            path.unlink(missing_ok=True)


def remove_stale_temporaries(root: Path) -> None:
    """Remove the temporaries of killed processes: at once for dead processes of this host, after a day for others."""
    for path in list(root.rglob(f"{TEMPORARY}*")):
        host, _, rest = path.name.removeprefix(TEMPORARY).partition("~")
        process = rest.partition("~")[0]
        try:
            old = time.time() - path.stat().st_mtime > STALE_SECONDS
        except FileNotFoundError:
            continue
        if old or (process.isdigit() and not intents.is_living(f"{host}~{process}")) or intents.is_abandoned(path):
            path.unlink(missing_ok=True)


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
    """Sync a folder of a store and those above it, up to the root. Another process may have made them just now."""
    for above in (folder, *folder.parents):
        _sync_folder(above)
        if above == root:
            return


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
    old = read_record(root, place)
    if old.text() != new.text():
        raise DisagreementError(
            f"{root / place} was committed by another process with other contents, but two runs of one shard must "
            "agree: use the same kind of processor and the same versions on all machines, then `unitscope repair`"
        )
    return old
