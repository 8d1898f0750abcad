"""Answers as text on standard output: aligned tables, CSV, JSON."""

from __future__ import annotations

import csv
import datetime
import io
import json
import math
from collections.abc import Iterable, Sequence
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from store import layout
from store.errors import UsageError, printable

if TYPE_CHECKING:
    import pandas as pd

_AS_THEY_ARE = (str, int, bool, type(None))
WIDEST = 60  # characters of one cell of a table


def frame_text(frame: pd.DataFrame, form: str) -> str:
    return rows_text(list(frame.columns), frame_rows(frame), form)


def frame_rows(frame: pd.DataFrame) -> list[tuple[Any, ...]]:
    """Return rows of plain Python values, None where not known."""
    columns = [[plain(value) for value in column.tolist()] for _, column in frame.items()]
    return list(zip(*columns, strict=True))


def frame_objects(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return [dict(zip(frame.columns, row, strict=True)) for row in frame_rows(frame)]


def plain(value: Any) -> Any:
    """Turn a value into one that JSON can hold: None for NaN and NA, text for dates and infinities."""
    if type(value) in _AS_THEY_ARE:
        return value
    if type(value).__name__ in ("NAType", "NaTType"):
        return None
    if isinstance(value, float):
        return value if math.isfinite(value) else None if math.isnan(value) else str(value)
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, (datetime.date, datetime.time, datetime.timedelta)):
        return str(value)
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    return value if isinstance(value, (bool, int, str)) else str(value)


def rows_text(columns: Sequence[str], rows: Iterable[Sequence[Any]], form: str) -> str:
    """Return rows as text. `form` is table, csv, or json (an array of objects)."""
    if form == "json":
        if len(set(columns)) < len(columns):
            raise UsageError("two columns have one name, which JSON cannot hold: name them with AS")
        return json.dumps([dict(zip(columns, row, strict=True)) for row in rows], ensure_ascii=False, indent=1) + "\n"
    if form == "csv":
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)
        return buffer.getvalue()
    return _table(columns, list(rows))


def _table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Align numbers to the right and words to the left, with four significant digits."""
    columns = [printable(name) for name in columns]
    cells = [[_cell(value) for value in row] for row in rows]
    right = [
        bool(rows) and all(v is None or (isinstance(v, (int, float)) and not isinstance(v, bool)) for v in column)
        for column in zip(*rows, strict=True)
    ] or [False] * len(columns)
    widths = [max(len(name), *(len(row[i]) for row in cells), 0) for i, name in enumerate(columns)]
    lines = [_line(columns, widths, right), "  ".join("-" * width for width in widths)]
    return "\n".join(lines + [_line(row, widths, right) for row in cells]) + "\n"


def _line(cells: Sequence[str], widths: Sequence[int], right: Sequence[bool]) -> str:
    placed = [cell.rjust(w) if r else cell.ljust(w) for cell, w, r in zip(cells, widths, right, strict=True)]
    return "  ".join(placed).rstrip()


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}"
    text = " ".join(str(value).split()) if not isinstance(value, str) else value.replace("\n", " ")
    text = printable(text)
    return text if len(text) <= WIDEST else text[: WIDEST - 3] + "..."


def save_path(path: Path, store: Path) -> Path:
    """Return the path to write an answer to. Its folder must exist and lie outside the store."""
    if not path.parent.is_dir():
        raise UsageError(f"{path}: there is no folder {path.parent}")
    if path.resolve().is_relative_to(store.resolve()) and (store / layout.MANIFEST).exists():
        raise UsageError(f"{path} lies in the store, which only its pipeline may write: choose another place")
    return path


def emit(text: str) -> None:
    click.echo(text, nl=False)
