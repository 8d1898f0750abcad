"""Shapes of tensors without their values, and the sources that torch.fx keeps of every graph."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.fx import graph_module
from torch.utils._pytree import tree_any, tree_iter, tree_map_only

_COMPUTED = 1 << 16  # constants of at most so many values are computed, because a network can ask for their values
_META = torch.device("meta")


@contextmanager
def shapes_only() -> Iterator[torch.device | None]:
    """Return a context in which operations on the tensors of one device compute shapes and no values.

    The context gives that device. It gives None if torch lacks what this needs; values are then computed as usual.
    Parameters and buffers of a network are read and never changed. Torch's own FakeTensorMode does more, and takes two
    to three times as long.
    """
    try:
        from torch.utils._python_dispatch import TorchDispatchMode
    except ImportError:
        yield None
        return

    class ShapesOnly(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.made: set[int] = set()  # addresses of values that were computed here

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = kwargs or {}
            written = _written(func, args, kwargs)
            of_the_network = written is not None and _address(written) not in self.made
            if not of_the_network and not tree_any(_has_shape_alone, (args, kwargs)):
                result = func(*args, **kwargs)
                is_constant = func is torch.ops.aten.lift_fresh.default  # of torch.tensor([...])
                given = set() if is_constant else {_address(x) for x in _tensors((args, kwargs))}
                self.made |= {_address(x) for x in _tensors(result)} - given
                return result
            if func is torch.ops.aten.native_batch_norm.default and not args[5]:  # 5: whether it trains
                # Torch would compute the shapes of all its steps, which takes 10 ms a norm.
                return torch.empty_like(args[0]), *(args[0].new_empty(0) for _ in range(2))
            if kwargs.get("device") is not None:
                kwargs = kwargs | {"device": _META}
            shapes_args, shapes_kwargs = tree_map_only(Tensor, _shape_of, (args, kwargs))
            result = func(*shapes_args, **shapes_kwargs)
            return result if written is None else written

    with ShapesOnly():
        yield _META


def _has_shape_alone(value: Any) -> bool:
    return isinstance(value, Tensor) and (value.is_meta or value.numel() > _COMPUTED)


def _shape_of(tensor: Tensor) -> Tensor:
    if tensor.is_meta:
        return tensor
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=_META)


def _tensors(values: Any) -> Iterator[Tensor]:
    return (x for x in tree_iter(values) if isinstance(x, Tensor))


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _written(func: Any, args: Any, kwargs: Any) -> Tensor | None:
    """Return the tensor with values that an operation in place was to change, which is then its result too."""
    for index, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[index] if index < len(args) else kwargs.get(argument.name)
            if isinstance(value, Tensor) and not value.is_meta:
                return value
    return None


def kept_sources() -> MutableMapping[str, Any]:
    """Return the sources of graphs that torch.fx keeps for tracebacks, by file name; empty if it keeps none."""
    kept: MutableMapping[str, Any] = getattr(getattr(graph_module, "_loader", None), "eval_cache", {})
    return kept
