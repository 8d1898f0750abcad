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
    from query.scope import Scope

UNROLLED = 1 << 24  # rows that one step of a query may make of the dense record

_TYPES = {"VARCHAR": pa.string(), "INTEGER": pa.int32(), "BIGINT": pa.int64(), "FLOAT": pa.float32(),
          "DOUBLE": pa.float64(), "BOOLEAN": pa.bool_()}  # fmt: skip
_IMAGE = {"image_id": "BIGINT", "path": "VARCHAR", "label": "VARCHAR", "class_index": "INTEGER"}
_UNIT = {"model": "VARCHAR", "layer": "VARCHAR", "channel": "INTEGER"}
_N = {"n": "BIGINT"}
_PLACE = {"y": "INTEGER", "x": "INTEGER"} | _N
_VALUE = {"value": "FLOAT", "mean": "FLOAT", "tail_p": "DOUBLE"}


@dataclass(frozen=True)
class Macro:
    """`parameters`: name -> SQL type; `optional`: those that may be left out (NULL); `columns` of the answer; `rows`:
    how many one answer may have, where that grows with the store."""

    name: str
    parameters: dict[str, str]
    optional: tuple[str, ...]
    columns: dict[str, str]
    answer: Callable[..., pd.DataFrame]
    rows: Callable[[], int] = lambda: 0

    @property
    def signature(self) -> str:
        return ", ".join(f"{_name(p)} := NULL" if p in self.optional else _name(p) for p in self.parameters)


def macros(scope: Scope) -> tuple[Macro, ...]:
    run, either = {"model": "VARCHAR", "dataset": "VARCHAR"}, ("model", "dataset")
    ranked_units = _UNIT | _VALUE | {"z": "DOUBLE", "rank": "BIGINT"} | _PLACE
    ranked_images = {"rank": "BIGINT"} | _IMAGE | _VALUE | _PLACE
    pair = {"value_a": "FLOAT", "tail_p_a": "DOUBLE", "value_b": "FLOAT", "tail_p_b": "DOUBLE"}
    together = {"rank": "BIGINT"} | _IMAGE | pair | _N
    return (
        Macro(
            "top_units", {"image_id": "BIGINT", "k": "BIGINT"} | run, either, ranked_units,
            lambda image_id, k, model, dataset: scope.top_units(image_id, k, model=model, dataset=dataset),
        ),
        Macro(
            "top_images", {"unit": "VARCHAR", "k": "BIGINT"} | run, either, ranked_images,
            lambda unit, k, model, dataset: scope.top_images(unit, k, model=model, dataset=dataset),
        ),
        Macro(
            "top_images_of_class", {"unit": "VARCHAR", "class": "VARCHAR", "k": "BIGINT"} | run, either, ranked_images,
            lambda unit, label, k, model, dataset: scope.top_images(unit, k, label, model=model, dataset=dataset),
        ),
        Macro(
            "lowest_images", {"unit": "VARCHAR", "k": "BIGINT"} | run, either, ranked_images,
            lambda unit, k, model, dataset: scope.top_images(unit, k, lowest=True, model=model, dataset=dataset),
        ),
        Macro(
            "unit_row", {"unit": "VARCHAR"} | run, either, _IMAGE | _VALUE | {"exact": "BOOLEAN"} | _PLACE,
            lambda unit, model, dataset: scope.activations(unit, model=model, dataset=dataset), scope.most_images,
        ),
        Macro(
            "image_row", {"image_id": "BIGINT"} | run, either, _UNIT | _VALUE | {"z": "DOUBLE"} | _PLACE,
            lambda image_id, model, dataset: scope.activations_of(image_id, model=model, dataset=dataset),
            scope.most_units,
        ),
        Macro(
            "both_high", {"a": "VARCHAR", "b": "VARCHAR", "k": "BIGINT"} | run, either, together,
            lambda a, b, k, model, dataset: scope.both(a, b, False, k, model, dataset),
        ),
        Macro(
            "high_without", {"a": "VARCHAR", "b": "VARCHAR", "k": "BIGINT"} | run, either, together,
            lambda a, b, k, model, dataset: scope.both(a, b, True, k, model, dataset),
        ),
        Macro(
            "similar_units", {"unit": "VARCHAR", "k": "BIGINT", "layers": "VARCHAR"} | run, ("layers", *either),
            _UNIT | {"rank": "BIGINT", "correlation": "DOUBLE"} | _N,
            lambda unit, k, layers, model, dataset: scope.similar_units(unit, k, layers, model=model, dataset=dataset),
        ),
        Macro(
            "similar_images", {"image_id": "BIGINT", "layer": "VARCHAR", "k": "BIGINT"} | run, either,
            {"rank": "BIGINT"} | _IMAGE | {"similarity": "DOUBLE"} | _N,
            lambda image_id, layer, k, model, dataset: scope.similar_images(
                image_id, layer, k, model=model, dataset=dataset
            ),
        ),
        Macro(
            "units_for_class", {"class": "VARCHAR", "k": "BIGINT"} | run, either,
            _UNIT | {"rank": "BIGINT", "auc": "FLOAT", "mean_max": "FLOAT", "z": "DOUBLE", "selectivity": "DOUBLE",
                     "top_class": "INTEGER", "class_index": "INTEGER", "label": "VARCHAR"} | _N,
            lambda label, k, model, dataset: scope.units_for_class(label, k, None, model, dataset),
        ),
        Macro(
            "class_selectivity", {"k": "BIGINT"} | run, ("k", *either),
            _UNIT | {"rank": "BIGINT", "selectivity": "DOUBLE", "top_class": "INTEGER", "label": "VARCHAR"} | _N,
            lambda k, model, dataset: scope.class_selectivity(k, None, model, dataset),
        ),
        Macro(
            "separating_units", {"class_a": "VARCHAR", "class_b": "VARCHAR", "k": "BIGINT"} | run, either,
            _UNIT | {"rank": "BIGINT", "auc": "DOUBLE", "mean_a": "DOUBLE", "mean_b": "DOUBLE", "z": "DOUBLE",
                     "n_a": "BIGINT", "n_b": "BIGINT"} | _N,
            lambda a, b, k, model, dataset: scope.separating_units(a, b, k, None, model, dataset),
        ),
        Macro(
            "compare_models", {"model_a": "VARCHAR", "model_b": "VARCHAR", "k": "BIGINT", "dataset": "VARCHAR"},
            ("dataset",),
            _UNIT | {"other_model": "VARCHAR", "other_layer": "VARCHAR", "other_channel": "INTEGER", "rank": "BIGINT",
                     "change": "DOUBLE", "correlation": "DOUBLE"} | _N,
            lambda a, b, k, dataset: scope.compare(a, b, k, None, dataset),
        ),
        Macro(
            "polysemantic_units", {"k": "BIGINT"} | run, either,
            _UNIT | {"rank": "BIGINT", "spread": "DOUBLE", "share": "DOUBLE", "classes": "BIGINT",
                     "labels": "VARCHAR"} | _N,
            lambda k, model, dataset: scope.polysemantic_units(k, None, model, dataset),
        ),
        Macro(
            "unit_states", run, either,
            _UNIT | {"state": "VARCHAR", "fraction_active": "DOUBLE", "saturated": "DOUBLE", "maximum": "DOUBLE"} | _N,
            lambda model, dataset: scope.unit_states(None, model, dataset),
        ),
        Macro(
            "image_summary", {"image_id": "BIGINT"} | run, either,
            {"model": "VARCHAR", "layer": "VARCHAR", "units": "BIGINT", "active": "BIGINT", "rare": "BIGINT",
             "expected": "DOUBLE", "channel": "INTEGER", "value": "FLOAT", "tail_p": "DOUBLE", "z": "DOUBLE"} | _PLACE,
            lambda image_id, model, dataset: scope.image_summary(image_id, model=model, dataset=dataset),
        ),
    )  # fmt: skip


def register(connection: duckdb.DuckDBPyConnection, scope: Scope, expired: Callable[[], bool]) -> None:
    # The connection keeps the functions: through them it must not keep the scope, which owns it, alive.
    for macro in macros(weakref.proxy(scope)):
        fields = ", ".join(f'"{name}" {kind}' for name, kind in macro.columns.items())
        connection.create_function(  # type: ignore[call-overload]
            f"__{macro.name}",
            _vectorized(macro, expired),
            list(macro.parameters.values()),
            f"STRUCT({fields})[]",
            type="arrow",
            null_handling="special",
        )
        connection.execute(
            f"CREATE MACRO {macro.name}({macro.signature}) AS TABLE "
            f"SELECT unnest(__{macro.name}({', '.join(map(_name, macro.parameters))}), recursive := true)"
        )


def _name(parameter: str) -> str:
    return '"class"' if parameter == "class" else parameter


def _vectorized(macro: Macro, expired: Callable[[], bool]) -> Callable[..., pa.Array]:
    """DuckDB calls with a column of each argument and takes a list of rows for each."""
    schema = pa.struct([pa.field(name, _TYPES[kind]) for name, kind in macro.columns.items()])

    def answers(*columns: pa.ChunkedArray) -> pa.Array:
        offsets, pieces = [0], []
        calls, rows = len(columns[0]), macro.rows()
        if calls > 1 and calls * rows > UNROLLED:
            most = max(UNROLLED // rows, 1)
            raise UsageError(
                f"{macro.name} of {calls:,} at once is {calls * rows:,} rows: ask for at most {most} at a time; the "
                "whole record is arrays/codes_by_unit and codes_by_image, for h5py (docs/store.md)"
            )
        for arguments in zip(*(column.to_pylist() for column in columns), strict=True):
            if expired():
                raise UsageError(f"{macro.name}: the time for this query is over: ask for less, or allow more seconds")
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
