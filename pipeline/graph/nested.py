"""What modules take and return: tensors and numbers in lists, tuples, mappings, dataclasses and one another."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
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


def with_tensors(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Return a value with every tensor in its lists, tuples and mappings changed. Anything else stays as it is."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        return {key: with_tensors(part, change) for key, part in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(with_tensors(part, change) for part in value))
    if isinstance(value, (list, tuple)):
        return type(value)(with_tensors(part, change) for part in value)
    return value


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
