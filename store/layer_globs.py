"""The choice of layers by name or by glob. It is case-sensitive everywhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase

from store.errors import UsageError, unknown


def matching(
    names: Sequence[str], globs: str | Sequence[str], no_match: Callable[[str], UsageError] | None = None
) -> list[str]:
    """Return the names that any glob matches, in their own order.

    A glob that is itself a name stands for that name alone. Raises UsageError if a glob matches nothing; `no_match`
    makes the error if it is given.
    """
    chosen: set[str] = set()
    for glob in [globs] if isinstance(globs, str) else globs:
        matches = {glob} & set(names) or {name for name in names if fnmatchcase(name, glob)}
        if not matches:
            raise no_match(glob) if no_match else unknown("layer", glob, names)
        chosen |= matches
    return [name for name in names if name in chosen]
