"""Reducers: from one activation to the statistics of its units, written to the buffers of a batch."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from pipeline.scan.batch_statistics import Buffers

Reducer = Callable[[Tensor, slice, bool, Buffers], None]  # activation [n, C, H, W], its units, signed, where to write


def choose(device: str) -> Reducer:
    """The fastest reducer for a device: numba on a CPU, torch elsewhere."""
    if device == "cpu":
        from pipeline.scan.reduce.cpu import reduce_numba

        return reduce_numba
    from pipeline.scan.reduce.torch import reduce_torch

    return reduce_torch
