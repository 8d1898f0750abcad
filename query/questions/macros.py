"""The SQL macros: the declared questions as table functions, with exactly the answers of the Python API.

DuckDB cannot read HDF5, and the table `tail` alone cannot answer for every image. So each macro unnests a list of rows,
which a Python function returns that is registered on the connection.
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable
from typing import Any, Protocol

import duckdb
import pandas as pd
import pyarrow as pa

from query.questions.declarations import QUESTIONS
from query.questions.question import Macro, Question, quoted
from store.errors import UsageError

UNROLLED = 1 << 24  # rows that one step of a query may make of the dense record

_TYPES = {"VARCHAR": pa.string(), "INTEGER": pa.int32(), "BIGINT": pa.int64(), "FLOAT": pa.float32(),
          "DOUBLE": pa.float64(), "BOOLEAN": pa.bool_()}  # fmt: skip


class Answering(Protocol):
    """An object with one method per question, named as the question is, and with these methods. A Scope is one."""

    def most_images(self) -> int:
        """Return the accepted images of the run that has most."""

    def most_units(self) -> int:
        """Return the units of the run that has most."""


def register(connection: duckdb.DuckDBPyConnection, scope: Answering, expired: Callable[[], bool]) -> None:
    """Create every macro. `expired` says whether the time of all running queries is over."""
    # The connection keeps the functions. The scope owns the connection, so they must not keep the scope alive.
    answering: Answering = weakref.proxy(scope)
    for question in QUESTIONS:
        fields = ", ".join(f'"{name}" {kind}' for name, kind in question.columns.items())
        for macro in question.macros:
            connection.create_function(  # type: ignore[call-overload]
                f"__{macro.name}",
                _vectorized(answering, question, macro, expired),
                [kind for kind, _ in macro.parameters.values()],
                f"STRUCT({fields})[]",
                type="arrow",
                null_handling="special",
            )
            connection.execute(
                f"CREATE MACRO {macro.name}({macro.signature}) AS TABLE "
                f"SELECT unnest(__{macro.name}({', '.join(map(quoted, macro.parameters))}), recursive := true)"
            )


def _vectorized(
    scope: Answering, question: Question, macro: Macro, expired: Callable[[], bool]
) -> Callable[..., pa.Array]:
    """Return the function that DuckDB calls with one column per parameter. It returns a list of rows per call."""
    schema = pa.struct([pa.field(name, _TYPES[kind]) for name, kind in question.columns.items()])

    def answers(*columns: pa.ChunkedArray) -> pa.Array:
        offsets, pieces = [0], []
        calls, rows = len(columns[0]), _rows(scope, question)
        if calls > 1 and calls * rows > UNROLLED:
            most = max(UNROLLED // rows, 1)
            raise UsageError(
                f"{macro.name} of {calls:,} at once is {calls * rows:,} rows: ask for at most {most} at a time; the "
                "whole record is arrays/codes_by_unit and codes_by_image, for h5py (docs/store.md)"
            )
        for values in zip(*(column.to_pylist() for column in columns), strict=True):
            if expired():
                raise UsageError(f"{macro.name}: the time for this query is over: ask for less, or allow more seconds")
            frame = getattr(scope, question.name)(**_arguments(macro, values))
            pieces.append(_structs(frame, schema))
            offsets.append(offsets[-1] + len(pieces[-1]))
        structs = pa.concat_arrays(pieces) if pieces else pa.array([], schema)
        return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), structs)

    # DuckDB counts the parameters of a function, so *columns must look like one parameter each.
    one_each = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_ONLY) for name in macro.parameters]
    answers.__signature__ = inspect.Signature(one_each)  # type: ignore[attr-defined]
    return answers


def _rows(scope: Answering, question: Question) -> int:
    """Return how many rows one answer may have if that grows with the store, else 0."""
    if question.rows == "images":
        return scope.most_images()
    return scope.most_units() if question.rows == "units" else 0


def _arguments(macro: Macro, values: tuple[Any, ...]) -> dict[str, Any]:
    """Return the arguments of Scope's method. Raises UsageError for a NULL that is not allowed."""
    arguments = dict(macro.fixed)
    for (name, (_, parameter)), value in zip(macro.parameters.items(), values, strict=True):
        if value is None and name not in macro.optional:
            raise UsageError(f"macro {macro.name}: {name} is NULL")
        arguments[parameter] = value
    return arguments


def _structs(frame: pd.DataFrame, schema: pa.StructType) -> pa.StructArray:
    fields = [schema.field(i) for i in range(schema.num_fields)]
    arrays = [pa.array(frame[field.name], field.type, from_pandas=True) for field in fields]
    return pa.StructArray.from_arrays(
        [a.combine_chunks() if isinstance(a, pa.ChunkedArray) else a for a in arrays], fields=fields
    )
