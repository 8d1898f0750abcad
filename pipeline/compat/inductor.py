"""What torch.compile takes and raises beyond its documentation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

# Inductor otherwise computes a cheap activation twice: for the tap and for the next convolution.
OPTIONS: dict[str, str | int | bool | Callable[..., object]] = {"realize_reads_threshold": 0}


def compiled_whole(network: nn.Module) -> Callable[..., Any]:
    """The network through torch.compile in one graph, for inputs of one shape."""
    try:
        return torch.compile(network, fullgraph=True, dynamic=False, options=OPTIONS)
    except RuntimeError:  # this torch has no such option, and compiles without it
        return torch.compile(network, fullgraph=True, dynamic=False)


def compile_error() -> type[Exception]:
    """The base class of what a failed compilation raises; torch documents that it is a RuntimeError."""
    errors = getattr(getattr(torch, "_dynamo", None), "exc", None)
    found: type[Exception] = getattr(errors, "TorchDynamoException", RuntimeError)
    return found
