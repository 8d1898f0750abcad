"""What modules take and return: tensors and numbers in lists, tuples, mappings, dataclasses and one another."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from numbers import Number
from typing import Any

from torch import Tensor, fx


def leaves(value: Any) -> Iterator[Any]:
    """Yield the tensors, proxies and numbers in a value, in their order. Anything else is left out."""
    if issubclass(type(value), (fx.Proxy, Tensor, Number)):
        yield value
    else:
        for _, part in parts(value):
            yield from leaves(part)


def parts(value: Any) -> list[tuple[Any, Any]]:
    """Return the parts of a list, tuple, mapping or dataclass with their index, key or name; none for another value.

    Parts of named tuples have their names. A mapping that is also a dataclass, as the outputs of transformers are,
    counts as a mapping.
    """
    if issubclass(type(value), Mapping):
        return list(value.items())
    if issubclass(type(value), tuple) and hasattr(value, "_fields"):
        return list(zip(value._fields, value, strict=True))
    if issubclass(type(value), (list, tuple)):
        return list(enumerate(value))
    if is_dataclass(type(value)):
        return [(field.name, getattr(value, field.name, None)) for field in fields(value)]
    return []
