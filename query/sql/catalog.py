"""The files that a store's commit records list, by run and table. A file that no record lists is not seen."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from store import commits, intact, layout, publish, views
from store.errors import UsageError

# Words of queries that name a file, or a table by an expression.
_OTHER_WAYS = {"parquet", "read_parquet", "parquet_scan", "query", "query_table"}


@dataclass(frozen=True)
class RunFiles:
    """The recorded files of one run.

    `tables` maps a table's name to its Parquet files, and `arrays` a path relative to the store to its HDF5 file.
    `config` holds the settings the run was made with; it is None before the run has folded.
    """

    name: str
    model: str
    dataset: str
    tables: Mapping[str, tuple[Path, ...]]
    arrays: Mapping[str, Path]
    config: Path | None


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
    recorded = sorted({file.path for _, file in commits.files_of(records)})
    datasets: dict[str, dict[str, Path]] = {}
    runs: dict[str, dict[str, Path]] = {}
    for relative in recorded:
        if layout.is_partial(relative):
            continue
        # `store.containment` has looked at the path: it lies below one of the two folders, and behind no link.
        path, (top, name, *_) = root / relative, PurePosixPath(relative).parts
        if top == "runs":
            runs.setdefault(name, {})[relative] = path
        elif views.table_of(relative):
            datasets.setdefault(name, {})[path.stem] = _present(path, relative)
    found = tuple(_run(name, files) for name, files in sorted(runs.items()))
    return Catalog(root, datasets, found, intact.Intact(root, records))


def _run(name: str, files: Mapping[str, Path]) -> RunFiles:
    tables: dict[str, tuple[Path, ...]] = {}
    for relative, path in files.items():
        if table := views.table_of(relative):
            tables[table] = (*tables.get(table, ()), _present(path, relative))
    arrays = {relative: path for relative, path in files.items() if PurePosixPath(relative).parts[2] == "arrays"}
    model, _, dataset = name.partition("@")
    return RunFiles(name, model, dataset, tables, arrays, files.get(layout.config(name)))


def _present(path: Path, relative: str) -> Path:
    if not path.is_file():
        raise UsageError(f"{relative} is recorded but missing in the store: run `unitscope repair`")
    return path
