"""Check the arguments that a person gives, of whatever type, so that a wrong one ends in one line."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Sequence
from typing import Any

from store.errors import UsageError

_SHOWN = 60  # characters of a wrong value


def count(k: Any) -> int:
    """Return how many rows are asked for. Raises UsageError unless it is a whole number of 1 or more."""
    try:
        number = operator.index(k)
    except TypeError:
        number = 0
    if isinstance(k, bool) or number < 1:
        raise UsageError(f"k={shown(k)}: ask for 1 or more")
    return number


def count_or_all(k: Any) -> int | None:
    """Return how many rows are asked for, or None for all."""
    return None if k is None else count(k)


def whole(name: str, value: Any) -> int:
    """Return a value that must be a whole number. Raises UsageError for any other."""
    try:
        return operator.index(value)
    except TypeError:
        raise UsageError(f"{name}={shown(value)}: expected a whole number") from None


def number(name: str, value: Any) -> float:
    """Return a value that must be a finite number. Raises UsageError for any other."""
    try:
        found = float(value)
    except (TypeError, ValueError, OverflowError):
        found = math.nan
    if isinstance(value, (str, bytes, bool)) or not math.isfinite(found):
        raise UsageError(f"{name}={shown(value)}: expected a number")
    return found


def one_of(value: Any, allowed: Sequence[str], name: str = "by") -> None:
    """Raise UsageError unless a value is one of the allowed words. `name` is the argument's."""
    if not isinstance(value, str) or value not in allowed:
        raise UsageError(f"{name}={shown(value)}: expected one of {', '.join(allowed)}")


def text(what: str, value: Any) -> str:
    """Return a value that must be text. Raises UsageError for any other; `what` names it."""
    if not isinstance(value, str):
        raise UsageError(f"{what} {shown(value)}: expected text")
    return value


def globs(layer: Any) -> list[str]:
    """Return the globs of `layer`, which is one or several. Raises UsageError if there is none, or one is no text."""
    several = layer if isinstance(layer, Iterable) and not isinstance(layer, (str, bytes)) else [layer]
    found = [text("layer", glob) for glob in several]
    if not found:
        raise UsageError("layer=[]: name one layer or more, or leave it out for all")
    return found


def spelled(value: Any) -> str:
    """Return a name as text: of a number its digits. One of more digits than Python prints is no name of anything."""
    try:
        return str(value)
    except ValueError:
        return shown(value)


def shown(value: Any) -> str:
    """Return a wrong value as an error shows it."""
    try:
        whole = repr(value)
    except Exception:  # of any object: a number of too many digits, among others
        whole = f"a {type(value).__name__}"
    return whole if len(whole) <= _SHOWN else whole[:_SHOWN] + "..."
