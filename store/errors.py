"""The one exception whose text is meant for a person, and the suggestions in its text."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

_LISTED = 5  # known names that an error lists where none is near


class UsageError(Exception):
    """Bad usage or bad input: one line that says what was wrong, where, and what to do. The CLI exits with 2."""


def did_you_mean(name: object, known: Iterable[object]) -> str:
    """Return "did you mean A, B or C?" for the known names nearest to `name`, or "" if none is near."""
    near = difflib.get_close_matches(str(name), [str(k) for k in known], 3, cutoff=0.5)
    return f"did you mean {' or '.join(filter(None, [', '.join(near[:-1]), near[-1]]))}?" if near else ""


def unknown(what: str, name: object, known: Iterable[object]) -> UsageError:
    """Return the error for a name that is not known, with the nearest names, or the first of those there are."""
    texts = [str(k) for k in known]
    return UsageError(f"{what} {str(name)!r} is unknown: {did_you_mean(name, texts) or 'there are ' + listed(texts)}")


def listed(names: Sequence[str]) -> str:
    """Return the first few names, and how many more there are."""
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more if names else "none"
