"""The files that a store's commit records list, by run and table. A file that no record lists is not seen."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from store import commits, intact, layout, publish, stages, views
from store.commits import Record
from store.errors import UsageError

# Words of queries that name a file, or a table by an expression.
_OTHER_WAYS = {"parquet", "read_parquet", "parquet_scan", "query", "query_table"}


@dataclass(frozen=True)
class Rendering:
    """A shard of the stage `visualize`: an HDF5 file whose dataset `images` has a picture of each of these channels."""

    path: Path
    channels: tuple[int, ...]


@dataclass(frozen=True)
class RunFiles:
    """The recorded files of one run.

    `tables` maps a table's name to its Parquet files, and `arrays` a path relative to the store to its HDF5 file.
    `config` holds the settings the run was made with; it is None before the run has folded. `rendering` has, for each
    layer, the feature visualizations that are there before the stage is complete. `digest` is a SHA-256 over the
    digests of all its files: it changes if and only if an answer about the run could.
    """

    name: str
    model: str
    dataset: str
    tables: Mapping[str, tuple[Path, ...]]
    arrays: Mapping[str, Path]
    config: Path | None
    rendering: Mapping[str, tuple[Rendering, ...]]
    digest: str


@dataclass(frozen=True)
class Catalog:
    """The recorded files of a store. `datasets` maps dataset -> table name -> Parquet file.

    `intact` checks a Parquet file before it is first read. HDF5 files have checksums of their own.
    """

    root: Path
    datasets: Mapping[str, Mapping[str, Path]]
    runs: tuple[RunFiles, ...]
    intact: intact.Intact

    def table(self, name: str) -> tuple[Path, ...]:
        """Return all Parquet files of one table, over datasets and runs."""
        of_datasets = [tables[name] for _, tables in sorted(self.datasets.items()) if name in tables]
        return (*of_datasets, *(path for run in self.runs for path in run.tables.get(name, ())))

    def tables(self) -> dict[str, list[str]]:
        """Return the Parquet files of every table, as text."""
        names = {name for tables in self.datasets.values() for name in tables}
        names |= {name for run in self.runs for name in run.tables}
        return {name: [str(path) for path in self.table(name)] for name in sorted(names)}

    def named_in(self, query: str) -> list[Path]:
        """Return the Parquet files that a query may read: those of each table whose name is a word of its text.

        If it can name files in another way, they are all of them.
        """
        words = set(re.findall(r"\w+", query.lower()))
        if words & _OTHER_WAYS:
            return self.parquet_files()
        named = {table for view, tables in views.READS.items() if view in words for table in tables}
        return [path for name in sorted(named) for path in self.table(name)]

    def parquet_files(self) -> list[Path]:
        of_datasets = [path for tables in self.datasets.values() for path in tables.values()]
        return of_datasets + [path for run in self.runs for paths in run.tables.values() for path in paths]


def read(root: Path) -> Catalog:
    """Read the commit records.

    Raises UsageError if a recorded table is missing or lies outside the store, or if DuckDB cannot read the store's
    path.
    """
    publish.check_version(root)
    publish.check_path(root)
    root = root.resolve()
    records = commits.all_records(root)
    recorded = {file.path: file.sha256 for _, file in commits.files_of(records)}
    datasets: dict[str, dict[str, Path]] = {}
    runs: dict[str, dict[str, Path]] = {}
    for relative in sorted(recorded):
        if layout.is_partial(relative):
            continue
        # `store.containment` has looked at the path: it lies below one of the two folders, and behind no link.
        path, (top, name, *_) = root / relative, PurePosixPath(relative).parts
        if top == "runs":
            runs.setdefault(name, {})[relative] = path
        elif views.table_of(relative):
            datasets.setdefault(name, {})[path.stem] = _present(path, relative)
    found = tuple(_run(name, files, recorded, _rendering(root, name, records)) for name, files in sorted(runs.items()))
    return Catalog(root, datasets, found, intact.Intact(root, records))


def _rendering(root: Path, run: str, records: Sequence[Record]) -> dict[str, tuple[Rendering, ...]]:
    """Return the positive feature visualizations that wait for the end of their stage, by layer."""
    shards = [record for record in records if record.run == run and record.stage == "visualize"]
    if any(record.shard == stages.spec_of("visualize").last for record in shards):
        return {}
    found: dict[str, tuple[Rendering, ...]] = {}
    for record in shards:
        layer, channels = record.facts.get("layer"), record.facts.get("channels")
        if not isinstance(channels, list) or not all(isinstance(c, int) and c >= 0 for c in channels):
            continue
        if isinstance(layer, str) and record.facts.get("direction") == "positive" and len(record.files) == 1:
            rendering = Rendering(root / record.files[0].path, tuple(channels))
            found[layer] = (*found.get(layer, ()), rendering)
    return found


def _run(
    name: str,
    files: Mapping[str, Path],
    digests: Mapping[str, str],
    rendering: Mapping[str, tuple[Rendering, ...]],
) -> RunFiles:
    tables: dict[str, tuple[Path, ...]] = {}
    for relative, path in files.items():
        if table := views.table_of(relative):
            tables[table] = (*tables.get(table, ()), _present(path, relative))
    arrays = {relative: path for relative, path in files.items() if PurePosixPath(relative).parts[2] == "arrays"}
    model, _, dataset = name.partition("@")
    listed = "\n".join(f"{relative} {digests[relative]}" for relative in sorted(files))
    listed += "".join(f"\n{shard.path.name}" for shards in rendering.values() for shard in shards)
    digest = hashlib.sha256(listed.encode()).hexdigest()
    return RunFiles(name, model, dataset, tables, arrays, files.get(layout.config(name)), rendering, digest)


def _present(path: Path, relative: str) -> Path:
    if not path.is_file():
        raise UsageError(f"{relative} is recorded but missing in the store: run `unitscope repair`")
    return path
