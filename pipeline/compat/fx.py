"""Tensors that have shapes but no values, and the sources that torch.fx keeps of every graph."""

from __future__ import annotations

import logging
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any

import torch
from torch.fx import graph_module


@contextmanager
def fake_tensors() -> Iterator[None]:
    """Return a context in which tensors have shapes but no values.

    If torch does not have it, the context does nothing. Values are then computed, and the shapes are the same. What
    torch logs when shapes do not fit is left out: the error that it raises says it.
    """
    try:
        from torch._subclasses.fake_tensor import FakeTensorMode
    except ImportError:
        yield
        return
    from torch.utils._python_dispatch import TorchDispatchMode

    class ShapesOfNorms(TorchDispatchMode):
        """A batch norm's output is shaped as its input. Torch would compute all its steps, which takes 10 ms a norm."""

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is torch.ops.aten.native_batch_norm.default and not args[5]:  # 5: whether it trains
                return torch.empty_like(args[0]), *(args[0].new_empty(0) for _ in range(2))
            return func(*args, **(kwargs or {}))

    log = logging.getLogger(FakeTensorMode.__module__)
    was = log.disabled
    log.disabled = True
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), ShapesOfNorms():
            yield
    finally:
        log.disabled = was


def kept_sources() -> MutableMapping[str, Any]:
    """Return the sources of graphs that torch.fx keeps for tracebacks, by file name; empty if it keeps none."""
    kept: MutableMapping[str, Any] = getattr(getattr(graph_module, "_loader", None), "eval_cache", {})
    return kept
