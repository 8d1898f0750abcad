"""Encode a block of units and compute what each code stands for, in one pass over the values (numba).

The results equal those of `store.codes.encode` and `counts_and_means`, which need no compiler and suit a few values.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from store.codes import CODES

_TOGETHER = 16  # channels at a time: their edges and sums stay in the second-level cache


def encode(
    values: NDArray[np.float32], edge: NDArray[np.float32]
) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.float32]]:
    """Encode the values of C units over N images.

    values: float32 [N, C]; edge: float32 [C, 256], ascending, with edge[:, 0] = -inf.

    Returns the codes, uint8 [N, C]; the number of images with each code, int64 [C, 256]; and the mean of their values,
    float32 [C, 256], 0 for codes without images.
    """
    codes = np.empty(values.shape, np.uint8)
    counts = np.zeros((values.shape[1], CODES), np.int64)
    totals = np.zeros((values.shape[1], CODES), np.float64)
    _encode(values, edge, codes, counts, totals)
    means = np.divide(totals, counts, out=np.zeros_like(totals), where=counts > 0)
    return codes, counts, means.astype(np.float32)


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _encode(
    values: NDArray[np.float32],
    edge: NDArray[np.float32],
    codes: NDArray[np.uint8],
    counts: NDArray[np.int64],
    totals: NDArray[np.float64],
) -> None:
    rows, channels = values.shape
    for first in range(0, channels, _TOGETHER):
        for row in range(rows):
            for channel in range(first, min(first + _TOGETHER, channels)):
                value = values[row, channel]
                code = 0  # becomes the index of the last edge that is not above the value
                for step in (128, 64, 32, 16, 8, 4, 2, 1):
                    code += step if edge[channel, code + step] <= value else 0
                codes[row, channel] = code
                counts[channel, code] += 1
                totals[channel, code] += np.float64(value)
