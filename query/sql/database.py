"""A locked, in-memory DuckDB over a store's recorded Parquet files, and the limits that every query runs under.

A person's SQL can only read the store. It must be exactly one SELECT, as DuckDB's own parser sees it. External access
is off except for the recorded files, listed one by one in `allowed_paths`: `allowed_directories` would open other files
beside them. (DuckDB would let COPY write to those paths, but COPY is no SELECT.) No extension loads, nothing spills to
disk, SQL cannot see Python variables, and the configuration is locked. DuckDB has no statement timeout, so a timer
interrupts.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import duckdb
import pyarrow as pa

from query.sql.catalog import Catalog
from store import views
from store.errors import UsageError

if TYPE_CHECKING:
    import pandas as pd
    import polars

LONGEST = 100_000  # characters of a query: a longer one takes long just to be parsed
_LONGEST_ERROR = 2000  # characters: DuckDB repeats what it does not understand
_BATCH = 65_536  # rows between two checks of the size of an answer
_WHOLE = pa.decimal128(38, 0)  # how HUGEINT, the type of sum(integer), arrives


def _half_of_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


@dataclass(frozen=True)
class Limits:
    """What one query may take.

    `seconds` is the time of one query, `memory` the bytes of all queries of a scope together, `threads` their threads,
    and `answer` the bytes of one result. With `isolated`, raw SQL runs in a child process (query/sql/worker.py), which
    takes half a second to start and is killed when the time is over. Without it only a timer interrupts, which a
    single huge constant expression can outrun.
    """

    seconds: float = 60.0
    memory: int = _half_of_memory()
    threads: int = os.cpu_count() or 1
    answer: int = 2 << 30
    isolated: bool = True

    def __post_init__(self) -> None:
        """Raise UsageError for a limit that is no number, or that no machine could keep."""
        _limit("seconds", self.seconds, 0, 1e7)
        _limit("memory", self.memory, 1 << 20, 1 << 60, (int,))
        _limit("threads", self.threads, 1, 4096, (int,))
        _limit("answer", self.answer, 1, 1 << 60, (int,))


def _limit(name: str, value: Any, least: float, most: float, types: Any = (int, float)) -> None:
    if isinstance(value, bool) or not isinstance(value, types) or not least <= value <= most or not value:
        kind = "whole number" if types == (int,) else "number"
        raise UsageError(f"limits: {name} is a {kind} from {least:,} to {most:,.0f}, not {value!r:.60}")


class Result:
    """An answer, wholly in memory. HUGEINT, the type of sum(integer), is int64 and DECIMAL is float64, as in pandas."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table
        self._next = 0

    @property
    def columns(self) -> list[str]:
        return list(self._table.column_names)

    def arrow(self) -> pa.Table:
        return self._table

    def df(self) -> pd.DataFrame:
        frame: pd.DataFrame = self._table.to_pandas(date_as_object=False)
        return frame

    def pl(self) -> polars.DataFrame:
        try:
            import polars
        except ImportError:
            raise UsageError("polars is not installed: pip install 'unitscope[polars]'") from None
        return polars.DataFrame(polars.from_arrow(self._table))

    def fetchone(self) -> tuple[Any, ...] | None:
        """The next row, or None after the last."""
        rows = _rows(self._table.slice(self._next, 1))
        self._next += len(rows)
        return rows[0] if rows else None

    def fetchall(self) -> list[tuple[Any, ...]]:
        """Return the rows that were not fetched yet."""
        rows = _rows(self._table.slice(self._next))
        self._next += len(rows)
        return rows

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def __repr__(self) -> str:
        return f"Result({self._table.num_rows} rows: {', '.join(self.columns)})"


class Database:
    """The views over a store. Macros are registered on `connection` before `lock` is called."""

    def __init__(self, catalog: Catalog, limits: Limits) -> None:
        self.limits = limits
        self._deadlines: list[float] = []
        self.connection = duckdb.connect(
            ":memory:",
            config={
                "autoinstall_known_extensions": False,
                "autoload_known_extensions": False,
                "python_enable_replacements": False,
                "temp_directory": "",
                "memory_limit": f"{limits.memory}B",
                "threads": limits.threads,
            },
        )
        files = [str(path) for path in catalog.parquet_files()]
        # A path with *, ? or [ is read through a pattern, which DuckDB checks before the file that it matches.
        self.connection.execute("SET allowed_paths = ?", [sorted({*files, *map(views.pattern, files)})])
        for statement in views.statements(catalog.tables()):
            with _explained(f"{catalog.root}: a table does not read (see `unitscope verify`)"):
                self.connection.execute(statement)

    def lock(self) -> None:
        """Close everything but the store's files, and forbid changing that."""
        self.connection.execute("SET enable_external_access = false")
        self.connection.execute("SET lock_configuration = true")

    def sql(self, query: str, parameters: Sequence[Any] | None = None) -> Result:
        """Run one SELECT from a person and fetch all of it, within the limits."""
        if len(query) > LONGEST:
            raise UsageError(f"SQL: the text has {len(query):,} characters, {LONGEST:,} are allowed")
        with _explained("SQL"):
            statements = self.connection.cursor().extract_statements(query)
        kinds = [statement.type.name for statement in statements]
        if kinds != ["SELECT"]:
            given = " and ".join(kinds) if kinds else "nothing"
            hint = "; write PIVOT ... IN (values) inside a SELECT" if "MULTI" in kinds else ""
            raise UsageError(f"SQL: exactly one SELECT is allowed, found {given}{hint}")
        return Result(self._fetch(statements[0], parameters))

    def table(self, query: str, parameters: Sequence[Any] | None = None) -> pa.Table:
        """Run a query of this package itself, under the same limits."""
        return self._fetch(query, parameters)

    def expired(self) -> bool:
        """Return whether the time of every query that is now running is over."""
        now = time.monotonic()
        return bool(self._deadlines) and all(deadline <= now for deadline in tuple(self._deadlines))

    def _fetch(self, query: duckdb.Statement | str, parameters: Sequence[Any] | None) -> pa.Table:
        # Each query needs its own cursor: a connection answers one query at a time. Reading a relation in batches
        # notices an answer that is too large before it fills the memory; execute() would collect all of it first.
        cursor = self.connection.cursor()
        timer = threading.Timer(self.limits.seconds, cursor.interrupt)
        timer.daemon = True
        timer.start()
        deadline = time.monotonic() + self.limits.seconds
        self._deadlines.append(deadline)
        try:
            with _explained("SQL", self.limits):
                relation = cursor.sql(query, params=list(parameters) if parameters else None)
                reader = relation.to_arrow_reader(_BATCH)
                return _plain_numbers(pa.Table.from_batches(_within(reader, self.limits.answer), reader.schema))
        finally:
            timer.cancel()
            self._deadlines.remove(deadline)
            cursor.close()

    def close(self) -> None:
        self.connection.close()


def _within(reader: pa.RecordBatchReader, limit: int) -> Iterator[pa.RecordBatch]:
    """Yield batches until their bytes exceed the limit."""
    size = 0
    for batch in reader:
        size += batch.nbytes
        if size > limit:
            raise UsageError(f"SQL: the answer is larger than {limit >> 20} MiB: add LIMIT, or aggregate")
        yield batch


def _plain_numbers(table: pa.Table) -> pa.Table:
    """Return the table with HUGEINT as int64, or float64 if it is too large, and DECIMAL as float64."""
    for index, field in enumerate(table.schema):
        if not pa.types.is_decimal(field.type):
            continue
        column = table.column(index)
        try:
            plain = column.cast(pa.int64() if field.type == _WHOLE else pa.float64())
        except pa.ArrowInvalid:  # beyond int64
            plain = column.cast(pa.float64())
        table = table.set_column(index, field.name, plain)
    return table


def _rows(table: pa.Table) -> list[tuple[Any, ...]]:
    if not table.num_columns:
        return []
    return list(zip(*(column.to_pylist() for column in table.columns), strict=True))


@contextmanager
def _explained(what: str, limits: Limits | None = None) -> Iterator[None]:
    """Turn DuckDB's errors into UsageErrors of one line."""
    try:
        yield
    except duckdb.InterruptException:
        seconds = f"{limits.seconds:g}" if limits else "?"
        raise UsageError(f"{what}: stopped after {seconds} s: ask for less, or allow more seconds") from None
    except duckdb.OutOfMemoryException:
        size = f"{limits.memory / 2**30:.3g} GiB" if limits else "memory"
        raise UsageError(f"{what}: needs more than {size}: ask for less at a time, or allow more memory") from None
    except UnicodeDecodeError as error:  # an error whose text quotes damaged bytes
        raise UsageError(f"{what}: what was read is damaged ({error}): see `unitscope verify`") from error
    except duckdb.Error as error:
        raise UsageError(f"{what}: {_one_line(str(error))}") from error


def _one_line(message: str) -> str:
    """Return the first paragraph. An error raised inside a macro loses the prefixes of DuckDB and Python."""
    inner = re.search(r"executing the UDF: UsageError: (.*)", message, re.DOTALL)
    paragraph = (inner[1] if inner else message).strip().split("\n\n")[0]
    line = " ".join(paragraph.split())
    return line if len(line) <= _LONGEST_ERROR else line[:_LONGEST_ERROR] + "..."
