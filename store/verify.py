"""The check of a store against its commit records. It trusts nothing that wrote the store."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from store import commits, containment, hdf5, layout, publish, regular_file
from store.commits import File, Record
from store.errors import UsageError
from store.stages import spec_of


@dataclass(frozen=True)
class Problem:
    """A file at `path` and what is wrong with it. `record` is the record of the shard that must run again, if any."""

    path: str
    what: str
    record: Record | None = None

    def __str__(self) -> str:
        return f"{self.path}: {self.what}"


@dataclass(frozen=True)
class Report:
    files: int
    size: int
    problems: tuple[Problem, ...]


def verify(root: Path, advance: Callable[[int], None] = lambda size: None) -> Report:
    """Read every file that a record lists and report all problems. Raises UsageError if `root` is not a store.

    `advance` is called with the size in bytes of each file that was checked.
    """
    require_store(root)
    problems: list[Problem] = []
    records: list[Record] = []
    for path in sorted((root / layout.COMMITS).rglob("*.json")):
        if path.name.startswith(publish.TEMPORARY):
            continue
        place = path.relative_to(root).as_posix()
        link = containment.link_on_the_way(root, place)
        if link is not None:
            problems.append(Problem(place, f"{link} is a link, which can lead outside the store"))
        elif not commits.is_sealed(_text(path)):
            problems.append(Problem(place, "the commit record is damaged"))
        else:
            try:
                records.append(commits.read_record(root, place))
            except UsageError as error:
                problems.append(Problem(place, str(error)))
    problems += _check_manifest(root, records, complete=not problems)
    known = {problem.path for problem in problems}
    missed = [place for place in commits.vanished(root, records) if place not in known]
    problems += [Problem(place, "the manifest lists this commit record, and it is gone") for place in missed]
    done = {(r.run, r.stage, r.shard) for r in records}
    files: dict[str, tuple[File, Record]] = {}
    for record, file in commits.files_of(records):
        if files.setdefault(file.path, (file, record))[0] != file:
            problems.append(
                Problem(file.path, f"two records disagree about it: one of {record.run} and one of another run", record)
            )
    checked = size = 0
    for name, (file, record) in sorted(files.items()):
        if layout.is_partial(name) and _consumed(record, done):
            continue
        checked, size = checked + 1, size + file.size
        problem = _check_file(root, file)
        advance(file.size)
        if problem:
            problems.append(Problem(name, problem, record))
    return Report(checked, size, (*problems, *_strangers(root, set(files))))


def _text(path: Path) -> str:
    try:
        return regular_file.read(path, commits.MOST_BYTES).decode()
    except (OSError, UnicodeDecodeError):
        return ""


def _check_manifest(root: Path, records: list[Record], complete: bool) -> list[Problem]:
    text = _text(root / layout.MANIFEST)
    if not commits.is_sealed(text):
        return [Problem(layout.MANIFEST, "the manifest is damaged or missing: run the config again, or repair")]
    unfinished = not any(r.shard == "finish" for r in records)
    if complete and not unfinished and text != publish.manifest_text(records):
        return [Problem(layout.MANIFEST, "is not the union of the commit records: the run was cut off; run it again")]
    return []


def _check_file(root: Path, file: File) -> str | None:
    path = root / file.path
    link = containment.link_on_the_way(root, file.path)
    if link is not None:
        return f"{link} is a link, which can lead outside the store"
    if not path.is_file():
        return "is missing"
    if path.stat().st_size != file.size:
        return f"has {path.stat().st_size} bytes, but {file.size} were committed"
    if publish.sha256(path) != file.sha256:
        return "does not have the contents that were committed (SHA-256 differs)"
    return _outside(path) if path.suffix == ".h5" else None


def _outside(path: Path) -> str | None:
    """Return what is wrong with an HDF5 file that does not hold its data itself, or None if it does.

    It can refer to other files by external storage, by a virtual dataset or by a link.
    """
    try:
        with hdf5.reading(path) as file:
            for name in hdf5.datasets(file, ""):
                hdf5.dataset(file, name)
    except UsageError as error:
        return str(error)
    return None


def _strangers(root: Path, known: set[str]) -> list[Problem]:
    """Find files of runs and datasets that no record lists: added by hand, or left by a shard that was cut off."""
    problems = []
    for top in ("datasets", "runs"):
        for path in sorted((root / top).rglob("*")):
            relative = path.relative_to(root).as_posix()
            if path.is_file() and relative not in known:
                problems.append(
                    Problem(relative, "no commit record lists it: delete it, or run the config again if it was cut off")
                )
    return problems


def repairable(report: Report) -> list[Record]:
    """Return the records of the shards whose files are damaged or missing, sorted, each once."""
    by_key = {(p.record.run, p.record.stage, p.record.shard): p.record for p in report.problems if p.record}
    return [by_key[key] for key in sorted(by_key)]


def _consumed(record: Record, done: set[tuple[str, str, str]]) -> bool:
    """Return whether the shard that reads this record's partials is committed, so that they may have been removed."""
    consumer = spec_of(record.stage).consumer
    return consumer is not None and (record.run, *consumer) in done


def require_store(root: Path) -> None:
    """Raise UsageError unless `root` is a store.

    A store whose manifest is damaged is still recognised if it has at least one intact commit record.
    """
    if not root.is_dir():
        raise UsageError(f"{root} does not exist: `unitscope run CONFIG --store {root}` makes a store")
    if not commits.is_sealed(_text(root / layout.MANIFEST)):
        records = (root / layout.COMMITS).rglob("*.json")
        if any(commits.is_sealed(_text(path)) for path in records):
            return
    publish.check_version(root)
