"""Ask a store in SQL, by named questions and for contact sheets.

Neither torch nor duckdb is imported before a store is opened.
"""

from __future__ import annotations

from os import PathLike
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from query.scope import Scope
    from query.sql.database import Limits

__all__ = ["open"]


def open(path: str | PathLike[str], *, model_code: bool = False, limits: Limits | None = None) -> Scope:
    """Open a store read-only. Only commit records are read, so this is quick; many scopes may be open at once.

    `model_code` says whether a model whose source in the store is `python:...` may be imported, which runs its code.
    `limits` are the time, memory, threads and answer size of a query. Raises store.errors.UsageError, of one line.
    """
    from query.scope import Scope

    return Scope(path, model_code=model_code, limits=limits)
