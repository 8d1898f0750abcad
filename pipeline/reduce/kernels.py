"""The fused reducer on a CPU: every activation is read once, for all statistics together (numba).

One task is one image and one block of channels; positions are walked in memory order (channels last), the channels of a
block in the inner, vectorised loop. It runs on one thread and without Python's lock: batches run beside each other.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

BLOCK = 256  # channels a task: eight rows of scratch stay in the first-level cache


@njit(cache=True, nogil=True, error_model="numpy")  # type: ignore[untyped-decorator]
def reduce_rows(
    x: NDArray[np.float32],
    image_stride: int,
    position_stride: int,
    images: int,
    positions: int,
    channels: int,
    out_max: Any,
    out_argmax: Any,
    out_min: Any,
    out_argmin: Any,
    out_sum: Any,
    out_square: Any,
    out_active: Any,
) -> None:
    """Reduces x over positions. x: flat float32, element (n, p, c) at n * image_stride + p * position_stride + c.

    Outputs [images, channels]: max and min float32, places int32 (first in order), sums float64, count above 0 int32.
    """
    blocks = (channels + BLOCK - 1) // BLOCK
    for task in range(images * blocks):
        n = task // blocks
        first = (task % blocks) * BLOCK
        width = min(BLOCK, channels - first)
        base = n * image_stride + first
        high = np.full(BLOCK, -np.inf, np.float32)
        low = np.full(BLOCK, np.inf, np.float32)
        high_at = np.zeros(BLOCK, np.float32)
        low_at = np.zeros(BLOCK, np.float32)
        active = np.zeros(BLOCK, np.float32)
        total = np.zeros(BLOCK, np.float64)
        square = np.zeros(BLOCK, np.float64)
        for p in range(0, positions - positions % 4, 4):
            a = x[base + p * position_stride : base + p * position_stride + width]
            b = x[base + (p + 1) * position_stride : base + (p + 1) * position_stride + width]
            c = x[base + (p + 2) * position_stride : base + (p + 2) * position_stride + width]
            d = x[base + (p + 3) * position_stride : base + (p + 3) * position_stride + width]
            place = np.float32(p)
            for k in range(width):
                va, vb, vc, vd = a[k], b[k], c[k], d[k]
                m, at = high[k], high_at[k]
                at = place if va > m else at
                m = va if va > m else m
                at = place + np.float32(1) if vb > m else at
                m = vb if vb > m else m
                at = place + np.float32(2) if vc > m else at
                m = vc if vc > m else m
                at = place + np.float32(3) if vd > m else at
                m = vd if vd > m else m
                high[k] = m
                high_at[k] = at
                m, at = low[k], low_at[k]
                at = place if va < m else at
                m = va if va < m else m
                at = place + np.float32(1) if vb < m else at
                m = vb if vb < m else m
                at = place + np.float32(2) if vc < m else at
                m = vc if vc < m else m
                at = place + np.float32(3) if vd < m else at
                m = vd if vd < m else m
                low[k] = m
                low_at[k] = at
                zero, one = np.float32(0), np.float32(1)
                active[k] += (
                    (one if va > zero else zero)
                    + (one if vb > zero else zero)
                    + (one if vc > zero else zero)
                    + (one if vd > zero else zero)
                )
                wa, wb, wc, wd = np.float64(va), np.float64(vb), np.float64(vc), np.float64(vd)
                total[k] += (wa + wb) + (wc + wd)
                square[k] += (wa * wa + wb * wb) + (wc * wc + wd * wd)
        for p in range(positions - positions % 4, positions):
            a = x[base + p * position_stride : base + p * position_stride + width]
            for k in range(width):
                v = a[k]
                if v > high[k]:
                    high[k] = v
                    high_at[k] = np.float32(p)
                if v < low[k]:
                    low[k] = v
                    low_at[k] = np.float32(p)
                if v > np.float32(0):
                    active[k] += np.float32(1)
                total[k] += np.float64(v)
                square[k] += np.float64(v) * np.float64(v)
        for k in range(width):
            out_max[n, first + k] = high[k]
            out_argmax[n, first + k] = np.int32(high_at[k])
            out_min[n, first + k] = low[k]
            out_argmin[n, first + k] = np.int32(low_at[k])
            out_sum[n, first + k] = total[k]
            out_square[n, first + k] = square[k]
            out_active[n, first + k] = np.int32(active[k])
