"""A panel: one part of a page, with its rows and the lines of SQL and Python that give them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from query.presentation import formats
from query.record.run_tables import Run

if TYPE_CHECKING:
    import pandas as pd

Answer = dict[str, Any]


def panel(title: str, about: str, rows: Sequence[Answer], sql: str = "", python: str = "") -> Answer:
    """Return a panel. `sql` gives exactly these rows, in a store opened by unitscope."""
    return {"title": title, "about": about, "sql": sql, "python": python, "rows": list(rows)}


def objects(frame: pd.DataFrame) -> list[Answer]:
    """Return the rows of an answer as plain values."""
    return formats.frame_objects(frame)


def plain_rows(rows: Sequence[Answer]) -> list[Answer]:
    return [{name: formats.plain(value) for name, value in row.items()} for row in rows]


def text(value: str) -> str:
    """Return a text as SQL writes it."""
    return "'" + value.replace("'", "''") + "'"


class Lines:
    """Write the lines that ask about one run. They name the model and the dataset where the store has several runs."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._several = len(run.catalog.runs) > 1

    @property
    def chosen(self) -> str:
        """The last arguments of a macro."""
        if not self._several:
            return ""
        return f", model := {text(self._run.model)}, dataset := {text(self._run.dataset)}"

    def where(self, *conditions: str, alias: str = "") -> str:
        """Return the WHERE clause of a view that has the columns model and dataset."""
        dot = f"{alias}." if alias else ""
        of_run = [f"{dot}model = {text(self._run.model)}", f"{dot}dataset = {text(self._run.dataset)}"]
        return "WHERE " + " AND ".join([*(of_run if self._several else []), *conditions])

    def call(self, method: str, *arguments: object) -> str:
        """Return a line of Python."""
        given = [repr(argument) for argument in arguments]
        if self._several:
            given += [f"model={self._run.model!r}", f"dataset={self._run.dataset!r}"]
        return f"scope.{method}({', '.join(given)})"
