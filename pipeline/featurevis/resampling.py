"""Bilinear sampling of a whole batch by one affine map on a CPU, with its gradient (numba).

`torch.nn.functional.grid_sample` gives the same, place after place in every plane; here the planes of all pictures lie
beside each other in memory, so a place is worked out once and a row of planes is moved at a time.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd.function import once_differentiable

Window = tuple[int, int, int, int]  # of the output: first row, first column, rows, columns


def sampled(x: Tensor, back: NDArray[np.float64], size: tuple[int, int], window: Window) -> Tensor:
    """Pictures [n, C, H, W] float32 -> a window [n, C, rows, columns] of their image of `size` under the affine map.

    back: float64 [2, 3], from an output place (x, y, 1) to its source, in coordinates of -1..1 along each side, as
    `affine_grid` and `grid_sample` have them with align_corners=False. Beyond the edge is black.
    """
    return _Sampled.apply(x, back, size, window)


class _Sampled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, back: NDArray[np.float64], size: tuple[int, int], window: Window) -> Tensor:
        ctx.shape, ctx.map = x.shape, (back, size, window)
        rows = _planes_last(x)
        out = np.empty((window[2], window[3], rows.shape[2]), np.float32)
        _gather(rows, back, *size, *window[:2], out)
        return _planes_first(out, x.shape[0])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        back, size, window = ctx.map
        n, channels, height, width = ctx.shape
        out = np.zeros((height, width, n * channels), np.float32)
        _scatter(_planes_last(gradient), back, *size, *window[:2], out)
        return _planes_first(out, n).contiguous(), None, None, None


def _planes_last(x: Tensor) -> NDArray[np.float32]:
    rows = x.permute(2, 3, 0, 1).contiguous().flatten(2)
    return rows.numpy()


def _planes_first(rows: NDArray[np.float32], pictures: int) -> Tensor:
    return torch.from_numpy(rows).unflatten(2, (pictures, -1)).permute(2, 3, 0, 1)


@njit(cache=True, nogil=True, inline="always")  # type: ignore[untyped-decorator]
def _corners(
    back: NDArray[np.float64], row: int, column: int, height: int, width: int, rows: int, columns: int
) -> tuple[int, int, np.float32, np.float32]:
    """The source's upper left corner, and its place from there, of an output place of an image [height, width]."""
    x, y = (2 * column + 1) / width - 1, (2 * row + 1) / height - 1
    across = ((back[0, 0] * x + back[0, 1] * y + back[0, 2] + 1) * columns - 1) / 2
    down = ((back[1, 0] * x + back[1, 1] * y + back[1, 2] + 1) * rows - 1) / 2
    left, top = int(np.floor(across)), int(np.floor(down))
    return top, left, np.float32(down - top), np.float32(across - left)


@njit(cache=True, nogil=True, error_model="numpy")  # type: ignore[untyped-decorator]
def _gather(
    source: NDArray[np.float32], back: NDArray[np.float64], height: int, width: int, top: int, left: int,
    out: NDArray[np.float32],
) -> None:  # fmt: skip
    rows, columns, planes = source.shape
    one = np.float32(1)
    for row in range(out.shape[0]):
        for column in range(out.shape[1]):
            to = out[row, column]
            to[:] = np.float32(0)
            y, x, dy, dx = _corners(back, row + top, column + left, height, width, rows, columns)
            for j in range(2):
                for i in range(2):
                    if 0 <= y + j < rows and 0 <= x + i < columns:
                        weight = (dy if j else one - dy) * (dx if i else one - dx)
                        of = source[y + j, x + i]
                        for k in range(planes):
                            to[k] += weight * of[k]


@njit(cache=True, nogil=True, error_model="numpy")  # type: ignore[untyped-decorator]
def _scatter(
    source: NDArray[np.float32], back: NDArray[np.float64], height: int, width: int, top: int, left: int,
    out: NDArray[np.float32],
) -> None:  # fmt: skip
    rows, columns, planes = out.shape
    one = np.float32(1)
    for row in range(source.shape[0]):
        for column in range(source.shape[1]):
            of = source[row, column]
            y, x, dy, dx = _corners(back, row + top, column + left, height, width, rows, columns)
            for j in range(2):
                for i in range(2):
                    if 0 <= y + j < rows and 0 <= x + i < columns:
                        weight = (dy if j else one - dy) * (dx if i else one - dx)
                        to = out[y + j, x + i]
                        for k in range(planes):
                            to[k] += weight * of[k]
