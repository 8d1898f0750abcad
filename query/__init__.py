"""Asks a store: SQL, named questions and contact sheets. Imports neither torch nor duckdb until a store is opened."""

from __future__ import annotations

from os import PathLike
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from query.scope import Scope
    from query.sql.database import Limits

__all__ = ["open"]


def open(path: str | PathLike[str], *, model_code: bool = False, limits: Limits | None = None) -> Scope:
    """Opens a store read-only. Cheap: only commit records are read; many scopes may be open at once.

    `model_code`: whether a model whose source in the store is `python:...` may be imported, which runs code.
    `limits`: memory, threads, seconds and answer size of one query. Raises store.errors.UsageError (one line).
    """
    from query.scope import Scope

    return Scope(path, model_code=model_code, limits=limits)
