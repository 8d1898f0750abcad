"""What a store holds: the files its commit records list, sorted by run and table. Nothing is seen by globbing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from store import layout, publish, views
from store.errors import UsageError


@dataclass(frozen=True)
class RunFiles:
    """The recorded files of one run. `tables`: name -> Parquet files; `arrays`: store-relative path -> HDF5 file;
    `config`: the settings it was made with, None before it has folded."""

    name: str
    model: str
    dataset: str
    tables: Mapping[str, tuple[Path, ...]]
    arrays: Mapping[str, Path]
    config: Path | None


@dataclass(frozen=True)
class Catalog:
    """`datasets`: dataset -> table name -> Parquet file. Files not yet recorded are simply absent."""

    root: Path
    datasets: Mapping[str, Mapping[str, Path]]
    runs: tuple[RunFiles, ...]

    def table(self, name: str) -> tuple[Path, ...]:
        """All Parquet files of one table, over datasets and runs."""
        of_datasets = [tables[name] for _, tables in sorted(self.datasets.items()) if name in tables]
        return (*of_datasets, *(path for run in self.runs for path in run.tables.get(name, ())))

    def tables(self) -> dict[str, list[str]]:
        """The same for every table there is, as text."""
        names = {name for tables in self.datasets.values() for name in tables}
        names |= {name for run in self.runs for name in run.tables}
        return {name: [str(path) for path in self.table(name)] for name in sorted(names)}

    def parquet_files(self) -> list[Path]:
        of_datasets = [path for tables in self.datasets.values() for path in tables.values()]
        return of_datasets + [path for run in self.runs for paths in run.tables.values() for path in paths]


def read(root: Path) -> Catalog:
    """Reads the commit records. A recorded table file that is missing, or a path that leaves the store, is an error."""
    publish.check_version(root)
    root = root.resolve()
    recorded = sorted({file.path for _, file in publish.files_of(publish.records(root))})
    datasets: dict[str, dict[str, Path]] = {}
    runs: dict[str, dict[str, Path]] = {}
    for relative in recorded:
        if layout.is_partial(relative):
            continue
        place, parts = _inside(root, relative), PurePosixPath(relative).parts
        if parts[0] == "datasets" and views.table_of(relative):
            datasets.setdefault(parts[1], {})[place.stem] = _present(place, relative)
        elif parts[0] == "runs" and len(parts) > 2:
            runs.setdefault(parts[1], {})[relative] = place
    return Catalog(root, datasets, tuple(_run(name, files) for name, files in sorted(runs.items())))


def _run(name: str, files: Mapping[str, Path]) -> RunFiles:
    tables: dict[str, tuple[Path, ...]] = {}
    for relative, place in files.items():
        if table := views.table_of(relative):
            tables[table] = (*tables.get(table, ()), _present(place, relative))
    arrays = {relative: place for relative, place in files.items() if PurePosixPath(relative).parts[2] == "arrays"}
    model, _, dataset = name.partition("@")
    return RunFiles(name, model, dataset, tables, arrays, files.get(layout.config(name)))


def _inside(root: Path, relative: str) -> Path:
    """A store may come from anywhere: what it lists must lie in it, also after links."""
    place = root / relative
    if PurePosixPath(relative).is_absolute() or ".." in relative.split("/") or not place.resolve().is_relative_to(root):
        raise UsageError(f"{root}: a commit record lists {relative!r}, which lies outside the store: do not trust it")
    return place


def _present(place: Path, relative: str) -> Path:
    if not place.is_file():
        raise UsageError(f"{relative} is recorded but missing in the store: run `unitscope repair`")
    return place
