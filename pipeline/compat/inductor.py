"""Options and errors of torch.compile that are not documented."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

# Without this, inductor computes a cheap activation twice: for the tap and for the next convolution.
OPTIONS: dict[str, str | int | bool | Callable[..., object]] = {"realize_reads_threshold": 0}


def compiled_whole(network: nn.Module) -> Callable[..., Any]:
    """Return the network compiled by torch.compile as one graph, for inputs of one shape."""
    try:
        return torch.compile(network, fullgraph=True, dynamic=False, options=OPTIONS)
    except RuntimeError:  # this torch does not have the option: compile without it
        return torch.compile(network, fullgraph=True, dynamic=False)


def compile_error() -> type[Exception]:
    """Return the base class of the errors of a failed compilation. torch only documents that it is a RuntimeError."""
    errors = getattr(getattr(torch, "_dynamo", None), "exc", None)
    error: type[Exception] = getattr(errors, "TorchDynamoException", RuntimeError)
    return error
