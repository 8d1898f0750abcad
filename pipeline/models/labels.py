"""The labels that a `python:` factory returns: one text per output of the network."""

from __future__ import annotations

import numbers
from collections.abc import Iterable, Mapping, Set
from typing import Any

from store.errors import UsageError

EXPECTED = "expected one text per output: a list, or a dict like id2label with the keys 0, 1, 2, ..."


def labels_from(value: Any, where: str) -> tuple[str, ...] | None:
    """Return labels as texts, in the order of the outputs, or None if there are none.

    They may be a list, a tuple, an array or another ordered collection of texts or numbers, or a dict whose keys are
    the numbers of the outputs, as numbers or as text. Raises UsageError, which begins with `where`, for anything else.
    """
    if value is None:
        return None
    if isinstance(value, Mapping):
        value = _by_number(value, where)
    elif hasattr(value, "tolist"):  # arrays, tensors and columns of data frames
        value = value.tolist()
    if isinstance(value, (str, bytes, Set)) or not isinstance(value, Iterable):
        raise UsageError(f"{where}: labels are of type {type(value).__name__}: {EXPECTED}")
    texts = tuple(_text(label, index, where) for index, label in enumerate(value))
    return texts or None


def check_number(labels: tuple[str, ...], outputs: int, where: str) -> None:
    """Raise UsageError unless there is one label per output."""
    if len(labels) != outputs:
        raise UsageError(
            f"{where}: the factory gives {len(labels)} labels, but the network has {outputs} outputs: give one text "
            "per output, or leave `labels` out"
        )


def _by_number(value: Mapping[Any, Any], where: str) -> list[Any]:
    by_number = {_number(key, where): label for key, label in value.items()}
    missing = next((index for index in range(len(value)) if index not in by_number), None)
    if missing is not None:
        raise UsageError(f"{where}: labels have no key {missing}, but {len(value)} keys: {EXPECTED}")
    return [by_number[index] for index in range(len(value))]


def _number(key: Any, where: str) -> int:
    if isinstance(key, numbers.Integral) and not isinstance(key, bool):
        return int(key)
    if isinstance(key, str) and key.strip().isascii() and key.strip().isdigit():
        return int(key)
    raise UsageError(f"{where}: labels have the key {key!r}, which is no number of an output: {EXPECTED}")


def _text(label: Any, index: int, where: str) -> str:
    plain = label.decode("utf-8", "replace") if isinstance(label, bytes) else label
    if isinstance(plain, numbers.Real) and not isinstance(plain, bool):
        plain = str(plain)
    if not isinstance(plain, str) or not _is_unicode(plain):
        raise UsageError(f"{where}: label {index} is {label!r}, which is no text: {EXPECTED}")
    return str(plain)


def _is_unicode(text: str) -> bool:
    """Whether a text can be stored: half of a surrogate pair cannot."""
    return not any("\ud800" <= character <= "\udfff" for character in text)
