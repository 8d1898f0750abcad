"""Rows of one unit, image or class in a Parquet file, read from only those row groups that may hold them."""

from __future__ import annotations

import functools
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from store.errors import UsageError

Key = str | int


class Lookup:
    """An open Parquet file whose footer is parsed once.

    DuckDB parses the footer with every query, which costs more than reading the rows of one key.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._file = pq.ParquetFile(path, memory_map=True, page_checksum_verification=True)
        except (OSError, pa.ArrowException) as error:
            raise UsageError(f"{path} cannot be read as Parquet ({error}): run `unitscope verify`") from error
        self._path = path
        self._columns = {name: i for i, name in enumerate(self._file.schema_arrow.names)}
        self._lock = threading.Lock()

    def rows(self, columns: Sequence[str], key: Mapping[str, Key]) -> pa.Table:
        """Return the rows in which every column of `key` has its value, in the file's order."""
        if not self._file.metadata.num_rows:  # a row group without rows has no least and no greatest value
            return self._read(np.zeros(0, np.intp), list(columns))
        groups = np.flatnonzero(
            np.logical_and.reduce([_may_hold(self._bounds[name], value) for name, value in key.items()])
        )
        table = self._recent(tuple(groups.tolist()), tuple(dict.fromkeys([*columns, *key])))
        kept = np.logical_and.reduce([_equal(table[name], value) for name, value in key.items()])
        if len(kept) == 0 or not kept.any():
            return table.slice(0, 0).select(columns)
        first, last = int(kept.argmax()), len(kept) - int(kept[::-1].argmax())
        if kept[first:last].all():  # contiguous rows can be sliced, which copies nothing
            return table.slice(first, last - first).select(columns)
        return table.select(columns).filter(pa.array(kept))

    def at(self, columns: tuple[str, ...], rows: NDArray[np.int64]) -> pa.Table:
        """Return rows by their number in the file, in the order asked.

        Row groups that were read stay in memory, so this is for small columns.
        """
        group = np.searchsorted(self._starts, rows, side="right") - 1
        wanted, index = np.unique(group, return_inverse=True)
        order = np.argsort(index, kind="stable")
        cuts = np.searchsorted(index[order], np.arange(len(wanted) + 1))
        if len(wanted) == 0:
            return self._read(wanted, list(columns))
        pieces = []
        for g, first, last in zip(wanted, cuts[:-1], cuts[1:], strict=True):
            pieces.append(self._group(int(g), columns).take(pa.array(rows[order[first:last]] - self._starts[g])))
        merged = pa.concat_tables(pieces).unify_dictionaries()
        return merged.take(pa.array(np.argsort(order, kind="stable"))) if len(wanted) > 1 else merged

    def greatest(self, column: str) -> int:
        """Return the greatest value of an integer column, from the statistics of its row groups."""
        return int(self._bounds[column][1].max()) if self._file.metadata.num_rows else 0

    @functools.cached_property
    def _starts(self) -> NDArray[np.int64]:
        metadata = self._file.metadata
        sizes = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
        return np.cumsum([0, *sizes[:-1]])

    @functools.cached_property
    def _bounds(self) -> _Bounds:
        return _Bounds(self._file.metadata, self._columns)

    @functools.lru_cache(maxsize=8)  # noqa: B019 - a page asks several times for rows of one unit
    def _recent(self, groups: tuple[int, ...], columns: tuple[str, ...]) -> pa.Table:
        return self._read(np.array(groups, np.intp), list(columns))

    @functools.lru_cache(maxsize=256)  # noqa: B019 - a file lives as long as its scope
    def _group(self, group: int, columns: tuple[str, ...]) -> pa.Table:
        return self._read(np.array([group]), list(columns))

    def _read(self, groups: NDArray[np.intp], columns: list[str]) -> pa.Table:
        try:
            with self._lock:
                return self._file.read_row_groups(groups.tolist(), columns, use_threads=len(columns) > 4)
        except (OSError, pa.ArrowException) as error:
            raise UsageError(f"{self._path} cannot be read ({error}): run `unitscope verify`") from error


class _Bounds(dict[str, tuple[NDArray[Any], NDArray[Any]]]):
    """Least and greatest value of a column in each row group, read when the column is first asked for."""

    def __init__(self, metadata: pq.FileMetaData, columns: Mapping[str, int]) -> None:
        self._metadata, self._columns = metadata, columns

    def __missing__(self, name: str) -> tuple[NDArray[Any], NDArray[Any]]:
        column, bounds = self._columns[name], []
        for group in range(self._metadata.num_row_groups):
            statistics = self._metadata.row_group(group).column(column).statistics
            if statistics is None or not statistics.has_min_max:
                raise UsageError(f"column {name} has no statistics: this file was not written by unitscope")
            bounds.append((statistics.min, statistics.max))
        self[name] = np.array([low for low, _ in bounds]), np.array([high for _, high in bounds])
        return self[name]


def _may_hold(bounds: tuple[NDArray[Any], NDArray[Any]], value: Key) -> NDArray[np.bool_]:
    low, high = bounds
    if not len(low):
        return np.zeros(0, np.bool_)
    possible: NDArray[np.bool_] = (low <= value) & (high >= value)
    return possible


def _equal(column: pa.ChunkedArray, value: Key) -> NDArray[np.bool_]:
    pieces = []
    for chunk in column.chunks:
        if isinstance(chunk, pa.DictionaryArray):
            code = chunk.dictionary.index(value).as_py()
            pieces.append(chunk.indices.to_numpy(zero_copy_only=False) == code)
        else:
            pieces.append(chunk.to_numpy(zero_copy_only=False) == value)
    return np.concatenate(pieces) if pieces else np.zeros(0, np.bool_)
