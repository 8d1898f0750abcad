"""The one exception whose text is meant for a person, and the suggestions that its text makes."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

_LONGEST = 200  # characters of a name in an error
_LISTED = 5  # known names that an error lists if none is similar


class UsageError(Exception):
    """Bad usage or bad input. The text is one line: what was wrong, where, and what to do. The CLI exits with 2."""


class Notice(UserWarning):
    """Something that a person should know and need not act on, in one line. The CLI prints it on standard error."""


def printable(text: str) -> str:
    """Return a text with an escape for each sign that a terminal could obey (controls, other directions of writing).

    Names, labels and paths in a store can come from anywhere. Line breaks stay.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def shortened(text: str) -> str:
    """Return the beginning of a text that is too long for an error of one line."""
    return text if len(text) <= _LONGEST else text[:_LONGEST] + "..."


def did_you_mean(name: object, known: Iterable[object]) -> str:
    """Return "did you mean A, B or C?" with the known names most similar to `name`, or "" if none is similar."""
    near = difflib.get_close_matches(str(name), [str(k) for k in known], 3, cutoff=0.5)
    return f"did you mean {' or '.join(filter(None, [', '.join(near[:-1]), near[-1]]))}?" if near else ""


def unknown(what: str, name: object, known: Iterable[object]) -> UsageError:
    """Return the error for an unknown name. It suggests similar names, or else lists the first known ones."""
    texts = [str(k) for k in known]
    name = shortened(str(name))
    return UsageError(f"{what} {name!r} is unknown: {did_you_mean(name, texts) or 'there are ' + listed(texts)}")


def listed(names: Sequence[str]) -> str:
    """Return the first few names as text, and how many more there are; "none" if there are no names."""
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more if names else "none"
