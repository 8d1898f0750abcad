"""The SQL macros: the named questions as table functions, with the very answers of the Python API.

DuckDB cannot read HDF5, and `tail` alone cannot answer for every image, so each macro unnests what a Python function
registered on the connection returns: a list of rows.
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import duckdb
import pandas as pd
import pyarrow as pa

from store.errors import UsageError

if TYPE_CHECKING:
    from .scope import Scope

_TYPES = {"VARCHAR": pa.string(), "INTEGER": pa.int32(), "BIGINT": pa.int64(), "FLOAT": pa.float32(),
          "DOUBLE": pa.float64(), "BOOLEAN": pa.bool_()}  # fmt: skip
_IMAGE = {"image_id": "BIGINT", "path": "VARCHAR", "label": "VARCHAR", "class_index": "INTEGER"}
_UNIT = {"model": "VARCHAR", "layer": "VARCHAR", "channel": "INTEGER"}
_PLACE = {"y": "INTEGER", "x": "INTEGER", "n": "BIGINT"}
_VALUE = {"value": "FLOAT", "mean": "FLOAT", "tail_p": "DOUBLE"}


@dataclass(frozen=True)
class Macro:
    """`parameters`: name -> SQL type; `optional`: those that may be left out (NULL); `columns` of the answer."""

    name: str
    parameters: dict[str, str]
    optional: tuple[str, ...]
    columns: dict[str, str]
    answer: Callable[..., pd.DataFrame]


def macros(scope: Scope) -> tuple[Macro, ...]:
    run, either = {"model": "VARCHAR", "dataset": "VARCHAR"}, ("model", "dataset")
    ranked_units = _UNIT | _VALUE | {"z": "DOUBLE", "rank": "BIGINT"} | _PLACE
    return (
        Macro(
            "top_units", {"image_id": "BIGINT", "k": "BIGINT"} | run, either, ranked_units,
            lambda image_id, k, model, dataset: scope.top_units(image_id, k, model=model, dataset=dataset),
        ),
        Macro(
            "top_images", {"unit": "VARCHAR", "k": "BIGINT"} | run, either,
            {"rank": "BIGINT"} | _IMAGE | _VALUE | _PLACE,
            lambda unit, k, model, dataset: scope.top_images(unit, k, model=model, dataset=dataset),
        ),
        Macro(
            "unit_row", {"unit": "VARCHAR"} | run, either, _IMAGE | _VALUE | {"exact": "BOOLEAN"} | _PLACE,
            lambda unit, model, dataset: scope.activations(unit, model=model, dataset=dataset),
        ),
        Macro(
            "image_row", {"image_id": "BIGINT"} | run, either, _UNIT | _VALUE | {"z": "DOUBLE"} | _PLACE,
            lambda image_id, model, dataset: scope.activations_of(image_id, model=model, dataset=dataset),
        ),
    )  # fmt: skip


def register(connection: duckdb.DuckDBPyConnection, scope: Scope) -> None:
    # The connection keeps the functions: through them it must not keep the scope, which owns it, alive.
    for macro in macros(weakref.proxy(scope)):
        fields = ", ".join(f'"{name}" {kind}' for name, kind in macro.columns.items())
        connection.create_function(  # type: ignore[call-overload]
            f"__{macro.name}",
            _vectorized(macro),
            list(macro.parameters.values()),
            f"STRUCT({fields})[]",
            type="arrow",
            null_handling="special",
        )
        signature = ", ".join(f"{p} := NULL" if p in macro.optional else p for p in macro.parameters)
        connection.execute(
            f"CREATE MACRO {macro.name}({signature}) AS TABLE "
            f"SELECT unnest(__{macro.name}({', '.join(macro.parameters)}), recursive := true)"
        )


def _vectorized(macro: Macro) -> Callable[..., pa.Array]:
    """DuckDB calls with a column of each argument and takes a list of rows for each."""
    schema = pa.struct([pa.field(name, _TYPES[kind]) for name, kind in macro.columns.items()])

    def answers(*columns: pa.ChunkedArray) -> pa.Array:
        offsets, pieces = [0], []
        for arguments in zip(*(column.to_pylist() for column in columns), strict=True):
            pieces.append(_structs(macro.answer(*_checked(macro, arguments)), schema))
            offsets.append(offsets[-1] + len(pieces[-1]))
        values = pa.concat_arrays(pieces) if pieces else pa.array([], schema)
        return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values)

    # DuckDB counts a function's parameters.
    one_each = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_ONLY) for name in macro.parameters]
    answers.__signature__ = inspect.Signature(one_each)  # type: ignore[attr-defined]
    return answers


def _checked(macro: Macro, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    for (name, _), value in zip(macro.parameters.items(), arguments, strict=True):
        if value is None and name not in macro.optional:
            raise UsageError(f"macro {macro.name}: {name} is NULL")
    return arguments


def _structs(frame: pd.DataFrame, schema: pa.StructType) -> pa.StructArray:
    fields = [schema.field(i) for i in range(schema.num_fields)]
    arrays = [pa.array(frame[field.name], field.type, from_pandas=True) for field in fields]
    return pa.StructArray.from_arrays(
        [a.combine_chunks() if isinstance(a, pa.ChunkedArray) else a for a in arrays], fields=fields
    )
