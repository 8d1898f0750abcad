"""The fused reducer for a CPU: it reads every activation once for all statistics together (numba).

A task is one image and one block of channels. The outer loop takes eight positions at a time in memory order (channels
last). The inner, vectorized loop runs over the channels of the block. A call uses one thread and releases Python's
lock, so that several batches can run in parallel.

Arithmetic limits the speed, not memory alone, so the loop does little of it. For an extreme it only notes which eight
positions hold it, and the exact position is looked up at the end. Sums are of deviations from the first position, eight
of which are added in float32 before they join a float64 sum. So the variance of a constant unit is exactly 0, and
rounding errors are relative to the deviations.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray
from torch import Tensor

from pipeline.scan.batch_statistics import Buffers, sums_in_double

_SQUARE = [f.name for f in fields(Buffers)].index("square")
BLOCK = 256  # channels per task: the scratch rows stay in the first-level cache
STEP = 8  # positions per iteration; the loop below is unrolled by hand
_HIGH, _LOW, _ACTIVE, _SHIFT, _HIGH_AT, _LOW_AT = (BLOCK * i for i in range(6))  # one scratch array: no alias checks


def reduce_numba(x: Tensor, units: slice, signed: bool, out: Buffers) -> None:
    """Reduce a CPU activation [n, C, H, W] in one pass. It is copied first if it is not channels last in memory."""
    images, channels, height, width = x.shape
    rows = x.float().permute(0, 2, 3, 1)
    if rows.stride(3) != 1 or (height > 1 and width > 1 and rows.stride(1) != width * rows.stride(2)):
        rows = rows.contiguous()
    position_stride = rows.stride(2) if width > 1 else rows.stride(1) if height > 1 else channels
    span = (images - 1) * rows.stride(0) + (height * width - 1) * position_stride + channels
    flat = torch.as_strided(rows, (span,), (1,)).numpy()
    reduce_rows(
        flat, rows.stride(0), position_stride, images, height * width, channels, signed,
        *(array[:images, units] for array in out.arrays),
    )  # fmt: skip
    if not np.isfinite(out.arrays[_SQUARE][:images, units]).all():
        out.sum[:images, units], out.square[:images, units] = sums_in_double(x)


@njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract"})  # type: ignore[untyped-decorator]
def reduce_rows(
    x: NDArray[np.float32],
    image_stride: int,
    position_stride: int,
    images: int,
    positions: int,
    channels: int,
    place_low: bool,
    out_max: Any,
    out_argmax: Any,
    out_min: Any,
    out_argmin: Any,
    out_sum: Any,
    out_square: Any,
    out_active: Any,
) -> None:
    """Reduce x over positions. x: flat float32, element (n, p, c) at n * image_stride + p * position_stride + c.

    Outputs are [images, channels]: max and min float32; argmax and argmin int32, the first position of each extreme
    (argmin only if `place_low`); sums float64; the count of values above 0 int32.
    """
    blocks = (channels + BLOCK - 1) // BLOCK
    whole = positions - positions % STEP
    f = np.empty(6 * BLOCK, np.float32)
    d = np.empty(2 * BLOCK, np.float64)
    zero, one = np.float32(0), np.float32(1)
    for task in range(images * blocks - 1, -1, -1):  # backwards: what was written last is still in the cache
        n = task // blocks
        first = (task % blocks) * BLOCK
        width = min(BLOCK, channels - first)
        base = n * image_stride + first
        a0 = x[base : base + width]
        for k in range(width):
            f[_HIGH + k] = f[_LOW + k] = f[_SHIFT + k] = a0[k]
            f[_ACTIVE + k] = f[_HIGH_AT + k] = f[_LOW_AT + k] = zero
            d[k] = d[BLOCK + k] = 0.0
        for p in range(0, whole, STEP):
            o, s = base + p * position_stride, position_stride
            a0, a1 = x[o : o + width], x[o + s : o + s + width]
            a2, a3 = x[o + 2 * s : o + 2 * s + width], x[o + 3 * s : o + 3 * s + width]
            a4, a5 = x[o + 4 * s : o + 4 * s + width], x[o + 5 * s : o + 5 * s + width]
            a6, a7 = x[o + 6 * s : o + 6 * s + width], x[o + 7 * s : o + 7 * s + width]
            position = np.float32(p)
            for k in range(width):
                v0, v1, v2, v3, v4, v5, v6, v7 = a0[k], a1[k], a2[k], a3[k], a4[k], a5[k], a6[k], a7[k]
                top = max(v0, v1, v2, v3, v4, v5, v6, v7)
                high = f[_HIGH + k]
                f[_HIGH_AT + k] = position if top > high else f[_HIGH_AT + k]
                f[_HIGH + k] = top if top > high else high
                bottom = min(v0, v1, v2, v3, v4, v5, v6, v7)
                low = f[_LOW + k]
                f[_LOW_AT + k] = position if bottom < low else f[_LOW_AT + k]
                f[_LOW + k] = bottom if bottom < low else low
                f[_ACTIVE + k] += (
                    ((one if v0 > zero else zero) + (one if v1 > zero else zero))
                    + ((one if v2 > zero else zero) + (one if v3 > zero else zero))
                ) + (
                    ((one if v4 > zero else zero) + (one if v5 > zero else zero))
                    + ((one if v6 > zero else zero) + (one if v7 > zero else zero))
                )
                shift = f[_SHIFT + k]
                v0, v1, v2, v3 = v0 - shift, v1 - shift, v2 - shift, v3 - shift
                v4, v5, v6, v7 = v4 - shift, v5 - shift, v6 - shift, v7 - shift
                d[k] += np.float64(((v0 + v1) + (v2 + v3)) + ((v4 + v5) + (v6 + v7)))
                d[BLOCK + k] += np.float64(
                    ((v0 * v0 + v1 * v1) + (v2 * v2 + v3 * v3)) + ((v4 * v4 + v5 * v5) + (v6 * v6 + v7 * v7))
                )
        for p in range(whole, positions):
            o = base + p * position_stride
            a0 = x[o : o + width]
            position = np.float32(p)
            for k in range(width):
                v = a0[k]
                high, low = f[_HIGH + k], f[_LOW + k]
                f[_HIGH_AT + k] = position if v > high else f[_HIGH_AT + k]
                f[_HIGH + k] = v if v > high else high
                f[_LOW_AT + k] = position if v < low else f[_LOW_AT + k]
                f[_LOW + k] = v if v < low else low
                f[_ACTIVE + k] += one if v > zero else zero
                v -= f[_SHIFT + k]
                d[k] += np.float64(v)
                d[BLOCK + k] += np.float64(v) * np.float64(v)
        to_max, to_min = out_max[n, first : first + width], out_min[n, first : first + width]
        to_sum, to_square = out_sum[n, first : first + width], out_square[n, first : first + width]
        to_active = out_active[n, first : first + width]
        for k in range(width):
            to_max[k], to_min[k] = f[_HIGH + k], f[_LOW + k]
            shift_d = np.float64(f[_SHIFT + k])
            to_sum[k] = d[k] + positions * shift_d
            to_square[k] = d[BLOCK + k] + shift_d * (d[k] + d[k] + positions * shift_d)
            to_active[k] = np.int32(f[_ACTIVE + k])
        _place(x, base, position_stride, whole, f[_HIGH_AT : _HIGH_AT + width], to_max, out_argmax[n, first:])
        if place_low:
            _place(x, base, position_stride, whole, f[_LOW_AT : _LOW_AT + width], to_min, out_argmin[n, first:])


@njit(cache=True, nogil=True, error_model="numpy", inline="always")  # type: ignore[untyped-decorator]
def _place(x: Any, base: int, stride: int, whole: int, coarse: Any, extreme: Any, out: Any) -> None:
    """Write the exact position of each extreme: the first of the eight positions from `coarse` that has it.

    A position in the remainder, from `whole` on, is exact already.
    """
    for k in range(len(coarse)):
        at = int(coarse[k])
        if at < whole:
            o = base + k + at * stride
            step = 7
            for j in range(6, -1, -1):  # without a branch that the processor could mispredict
                step = j if x[o + j * stride] == extreme[k] else step
            at += step
        out[k] = at
