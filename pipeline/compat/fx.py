"""Tensors that have shapes but no values, and the sources that torch.fx keeps of every graph."""

from __future__ import annotations

import logging
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any

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
    log = logging.getLogger(FakeTensorMode.__module__)
    was = log.disabled
    log.disabled = True
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            yield
    finally:
        log.disabled = was


def kept_sources() -> MutableMapping[str, Any]:
    """Return the sources of graphs that torch.fx keeps for tracebacks, by file name; empty if it keeps none."""
    kept: MutableMapping[str, Any] = getattr(getattr(graph_module, "_loader", None), "eval_cache", {})
    return kept
