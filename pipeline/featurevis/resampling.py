"""Bilinear sampling of a whole batch under one affine map on a CPU, with its gradient (numba).

`torch.nn.functional.grid_sample` gives the same result, but computes every position again for every plane. Here the
planes of all pictures are adjacent in memory, so each position is computed once and applied to all planes together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd.function import once_differentiable

Window = tuple[int, int, int, int]  # a part of the output: first row, first column, rows, columns


def sampled(x: Tensor, back: NDArray[np.float64], size: tuple[int, int], window: Window) -> Tensor:
    """Sample pictures, float32 [n, C, H, W], under an affine map. Return a window of the result [n, C, rows, columns].

    `back`: float64 [2, 3], maps an output position (x, y, 1) to its source. Both are in coordinates of -1..1 along each
    side, as in `affine_grid` and `grid_sample` with align_corners=False. Beyond the edge of a picture is black.
    `size`: height and width of the whole output, of which only `window` is computed.
    """
    return _Sampled.apply(x, back, size, window)


class _Sampled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, back: NDArray[np.float64], size: tuple[int, int], window: Window) -> Tensor:
        ctx.shape, ctx.map = x.shape, (back, size, window)
        rows = _planes_last(x)
        out = np.zeros((window[2], window[3], rows.shape[2]), np.float32)
        _add(out, rows, back, *size, *window[:2], True)
        return _planes_first(out, x.shape[:2])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        back, size, window = ctx.map
        n, channels, height, width = ctx.shape
        out = np.zeros((height, width, n * channels), np.float32)
        _add(_planes_last(gradient), out, back, *size, *window[:2], False)
        return _planes_first(out, (n, channels)).contiguous(), None, None, None


def _planes_last(x: Tensor) -> NDArray[np.float32]:
    """Reshape [n, C, H, W] to [H, W, n * C]."""
    rows = x.permute(2, 3, 0, 1).contiguous().flatten(2)
    return rows.numpy()


def _planes_first(rows: NDArray[np.float32], planes: Sequence[int]) -> Tensor:
    """Reshape [H, W, n * C] to [n, C, H, W]. `planes` is (n, C)."""
    return torch.from_numpy(rows).unflatten(2, tuple(planes)).permute(2, 3, 0, 1)


@njit(cache=True, nogil=True, inline="always")  # type: ignore[untyped-decorator]
def _corners(
    back: NDArray[np.float64], row: int, column: int, height: int, width: int, rows: int, columns: int
) -> tuple[int, int, np.float32, np.float32]:
    """Return (top, left, dy, dx): the upper left source pixel of an output pixel, and the fractional offset from it.

    The output has `height` x `width` pixels, the source `rows` x `columns`.
    """
    x, y = (2 * column + 1) / width - 1, (2 * row + 1) / height - 1
    across = ((back[0, 0] * x + back[0, 1] * y + back[0, 2] + 1) * columns - 1) / 2
    down = ((back[1, 0] * x + back[1, 1] * y + back[1, 2] + 1) * rows - 1) / 2
    left, top = int(np.floor(across)), int(np.floor(down))
    return top, left, np.float32(down - top), np.float32(across - left)


@njit(cache=True, nogil=True, error_model="numpy")  # type: ignore[untyped-decorator]
def _add(
    window: NDArray[np.float32], image: NDArray[np.float32], back: NDArray[np.float64], height: int, width: int,
    top: int, left: int, to_window: bool,
) -> None:  # fmt: skip
    """Add to each pixel of the window the image sampled at its source.

    If `to_window` is false, add each pixel of the window to the image instead, with the same weights: the gradient.
    """
    rows, columns, planes = image.shape
    one = np.float32(1)
    for row in range(window.shape[0]):
        for column in range(window.shape[1]):
            pixel = window[row, column]
            y, x, dy, dx = _corners(back, row + top, column + left, height, width, rows, columns)
            for j in range(2):
                for i in range(2):
                    if 0 <= y + j < rows and 0 <= x + i < columns:
                        weight = (dy if j else one - dy) * (dx if i else one - dx)
                        corner = image[y + j, x + i]
                        to, of = (pixel, corner) if to_window else (corner, pixel)
                        for k in range(planes):
                            to[k] += weight * of[k]
