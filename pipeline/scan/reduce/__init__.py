"""Reducers: compute the statistics of the units of one activation and write them to the buffers of a batch."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from pipeline.scan.batch_statistics import Buffers

Reducer = Callable[[Tensor, slice, bool, Buffers], None]  # activation [n, C, H, W], its units, signed, output


def choose(device: str) -> Reducer:
    """Return the fastest reducer for a device: numba on a CPU, torch elsewhere."""
    if device == "cpu":
        from pipeline.scan.reduce.cpu import reduce_numba

        return reduce_numba
    from pipeline.scan.reduce.torch import reduce_torch

    return reduce_torch
