"""Parquet as the store uses it: scalar columns, zstd, page checksums. The same table gives the same bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from store.errors import UsageError
from store.schema import Field, Table

_TYPES = {
    "name": pa.dictionary(pa.int32(), pa.string()), "text": pa.string(), "bool": pa.bool_(),
    "int16": pa.int16(), "int32": pa.int32(), "int64": pa.int64(), "float32": pa.float32(), "float64": pa.float64(),
}  # fmt: skip


def arrow_schema(table: Table) -> pa.Schema:
    return pa.schema([pa.field(f.name, _TYPES[f.kind], nullable=f.null) for f in table.fields])


def to_arrow(table: Table, columns: Mapping[str, Any]) -> pa.Table:
    """Convert columns to an Arrow table of the schema. NaN in an array for a nullable float column becomes NULL.

    A column is an array, a list, or a single value for all rows. Raises ValueError if columns are missing or unknown,
    or if a column that is not nullable holds a NULL.
    """
    if set(columns) != set(table.columns):
        raise ValueError(f"{table.name}: columns {sorted(set(columns) ^ set(table.columns))} are missing or unknown")
    rows = next((len(v) for v in columns.values() if not np.isscalar(v)), 1)
    arrays = [_column(f, columns[f.name], rows) for f in table.fields]
    return pa.Table.from_arrays(arrays, schema=arrow_schema(table))


def _column(field: Field, values: Any, rows: int) -> pa.Array:
    if field.kind == "name" and isinstance(values, str):
        return pa.DictionaryArray.from_arrays(np.zeros(rows, np.int32), pa.array([values], pa.string()))
    if np.isscalar(values):
        values = [values] * rows
    mask = np.isnan(values) if field.null and isinstance(values, np.ndarray) and values.dtype.kind == "f" else None
    if field.kind == "name":
        return pa.array(values, pa.string()).dictionary_encode().cast(_TYPES["name"])
    array = pa.array(values, _TYPES[field.kind], mask=mask)
    if not field.null and array.null_count:
        raise ValueError(f"column {field.name} holds a NULL")
    return array


def complete(table: Table, data: pa.Table) -> pa.Table:
    """Return a table that was read from an older store with the columns that it lacks, in the order of the schema."""
    for field in table.fields:
        if field.added is not None and field.name not in data.column_names:
            data = data.append_column(field.name, pa.array([field.added] * len(data), _TYPES[field.kind]))
    return data.select(list(table.columns))


def write(path: Path, table: Table, data: pa.Table) -> None:
    """Write one file. Floats use byte stream split, ascending ids are delta-packed, only names use dictionaries."""
    encodings = {f.name: "BYTE_STREAM_SPLIT" for f in table.fields if f.kind in ("float32", "float64")}
    encodings |= {f.name: "DELTA_BINARY_PACKED" for f in table.fields if f.kind in ("int64", "int32") and f.ascending}
    pq.write_table(
        data.cast(arrow_schema(table)),
        path,
        compression="zstd",
        compression_level=3,
        row_group_size=table.row_group,
        use_dictionary=[f.name for f in table.fields if f.kind == "name"],
        column_encoding=encodings or None,
        write_page_checksum=True,
        store_schema=True,
    )


def write_columns(path: Path, table: Table, columns: Mapping[str, Any]) -> None:
    write(path, table, to_arrow(table, columns))


def read(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a file and check the checksum of every page, which DuckDB does not do. Raises UsageError if it fails."""
    try:
        return pq.read_table(path, columns=list(columns) if columns else None, page_checksum_verification=True)
    except (OSError, pa.ArrowException) as error:
        raise UsageError(f"{path} cannot be read as Parquet ({error}): run `unitscope verify`") from error
