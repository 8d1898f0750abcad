"""Tensors that have shapes but no values, and the sources that torch.fx keeps of every graph."""

from __future__ import annotations

from collections.abc import MutableMapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch.fx import graph_module


def fake_tensors() -> AbstractContextManager[Any]:
    """Return a context in which tensors have shapes but no values.

    If torch does not have it, the context does nothing. Values are then computed, and the shapes are the same.
    """
    try:
        from torch._subclasses.fake_tensor import FakeTensorMode
    except ImportError:
        return nullcontext()
    return FakeTensorMode(allow_non_fake_inputs=True)


def kept_sources() -> MutableMapping[str, Any]:
    """Return the sources of graphs that torch.fx keeps for tracebacks, by file name; empty if it keeps none."""
    kept: MutableMapping[str, Any] = getattr(getattr(graph_module, "_loader", None), "eval_cache", {})
    return kept
