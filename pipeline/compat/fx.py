"""Shapes without computing, and the sources that torch.fx keeps of every graph."""

from __future__ import annotations

from collections.abc import MutableMapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch.fx import graph_module


def fake_tensors() -> AbstractContextManager[Any]:
    """A context in which tensors have shapes and no values. Without it values are computed: the shapes are the same."""
    try:
        from torch._subclasses.fake_tensor import FakeTensorMode
    except ImportError:
        return nullcontext()
    return FakeTensorMode(allow_non_fake_inputs=True)


def kept_sources() -> MutableMapping[str, Any]:
    """The sources of compiled graphs that torch.fx keeps for tracebacks, by file name; empty where it keeps none."""
    kept: MutableMapping[str, Any] = getattr(getattr(graph_module, "_loader", None), "eval_cache", {})
    return kept
