"""Pillow's resize of 8-bit pictures, byte for byte, of a crop alone (numba).

Pillow's resampling is integer arithmetic (`Resample.c`). For each output pixel the weights of its filter are normalized
in double precision and rounded to 22 fractional bits. They are summed with the bytes in 32-bit integers, shifted and
clipped, first along rows and then along columns, with bytes in between. The filter's support grows with the scale.
Computing only what a centre crop keeps takes less than Pillow's own time for the whole picture.

Since release 13, Pillow goes along columns first if a picture is tall or its height is scaled down much more than its
width (pull request 9549). Such pictures are left to Pillow itself.
"""

from __future__ import annotations

import functools

import numpy as np
from numba import njit
from numpy.typing import NDArray

SUPPORT = {"bilinear": 1.0, "bicubic": 2.0}  # pixels to either side of a filter's centre, at a scale of 1
_TALLEST = 1.9  # height / width; from about 2 on, columns may come first
_BITS = 22  # fractional bits of a weight: 32 bits, less 8 of the bytes and 2 for the sum
_BICUBIC = -0.5  # Pillow's `a`

Weights = tuple[NDArray[np.int32], NDArray[np.int32]]


def is_known(before: tuple[int, int], after: tuple[int, int], interpolation: str) -> bool:
    """Whether `resized_crop` gives Pillow's bytes if pictures of one (width, height) are resized to another."""
    (width, height), (new_width, new_height) = before, after
    evenly = (new_height + 1) * width >= new_width * height  # the new height may be rounded down
    return interpolation in SUPPORT and evenly and height <= _TALLEST * width


def resized_crop(
    picture: NDArray[np.uint8], size: tuple[int, int], crop: tuple[int, int, int, int], interpolation: str
) -> NDArray[np.uint8]:
    """Return a part of a resized picture: uint8 [C, height, width], the bytes that `Image.resize` gives.

    picture: uint8 [H, W, C]; size: width and height that the whole picture is resized to; crop: left, top, width and
    height of the part, which must be inside; interpolation: "bilinear" or "bicubic".
    """
    left, top, width, height = crop
    across, across_weights = _weights(picture.shape[1], size[0], interpolation)
    down, down_weights = _weights(picture.shape[0], size[1], interpolation)
    across, across_weights = across[left : left + width], across_weights[left : left + width]
    down, down_weights = down[top : top + height], down_weights[top : top + height]
    first = int(down[0])
    rows = int(down[-1]) + down_weights.shape[1] - first
    out = np.empty((picture.shape[2], height, width), np.uint8)
    _resize(picture, first, min(rows, picture.shape[0] - first), across, across_weights, down, down_weights, out)
    return out


@functools.lru_cache(256)
def _weights(before: int, after: int, interpolation: str) -> Weights:
    """Return for each output pixel the first input pixel, int32 [after], and the weights of those from it on.

    Weights are int32 [after, most]; they are 0 beyond the support, and beyond the picture.
    """
    scale = before / after
    stretch = max(scale, 1.0)
    support = SUPPORT[interpolation] * stretch
    center = (np.arange(after) + 0.5) * scale
    first = np.maximum((center - support + 0.5).astype(np.int64), 0)
    end = np.minimum((center + support + 0.5).astype(np.int64), before)
    offsets = np.arange(int((end - first).max()))
    distance = np.abs((offsets + first[:, None] - center[:, None] + 0.5) * (1.0 / stretch))
    weight = np.where(offsets < (end - first)[:, None], _FILTERS[interpolation](distance), 0.0)
    total = np.zeros(after)
    for column in weight.T:  # in Pillow's order, so that the last bit is the same
        total += column
    weight = np.divide(weight, total[:, None], out=weight, where=total[:, None] != 0)
    fixed = np.trunc(weight * (1 << _BITS) + np.where(weight < 0, -0.5, 0.5)).astype(np.int32)
    return first.astype(np.int32), np.ascontiguousarray(fixed)


def _bilinear(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(x < 1, 1 - x, 0)


def _bicubic(x: NDArray[np.float64]) -> NDArray[np.float64]:
    near = ((_BICUBIC + 2) * x - (_BICUBIC + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * _BICUBIC
    return np.where(x < 1, near, np.where(x < 2, far, 0))


_FILTERS = {"bilinear": _bilinear, "bicubic": _bicubic}


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _resize(
    picture: NDArray[np.uint8],
    first: int,
    rows: int,
    across: NDArray[np.int32],
    across_weights: NDArray[np.int32],
    down: NDArray[np.int32],
    down_weights: NDArray[np.int32],
    out: NDArray[np.uint8],
) -> None:
    """Resize `rows` rows of a picture from `first` on along their length, and then along columns."""
    channels, height, width = out.shape
    columns = picture.shape[1]
    half = np.int32(1 << (_BITS - 1))
    between = np.empty((rows, channels * width), np.uint8)
    for row in range(rows):
        line = picture[first + row]
        for x in range(width):
            start = across[x]
            count = min(across_weights.shape[1], columns - start)
            if channels == 3:
                red, green, blue = half, half, half
                for k in range(count):
                    weight = across_weights[x, k]
                    red += np.int32(line[start + k, 0]) * weight
                    green += np.int32(line[start + k, 1]) * weight
                    blue += np.int32(line[start + k, 2]) * weight
                between[row, x] = min(max(red >> _BITS, 0), 255)
                between[row, width + x] = min(max(green >> _BITS, 0), 255)
                between[row, 2 * width + x] = min(max(blue >> _BITS, 0), 255)
            else:
                for c in range(channels):
                    total = half
                    for k in range(count):
                        total += np.int32(line[start + k, c]) * across_weights[x, k]
                    between[row, c * width + x] = min(max(total >> _BITS, 0), 255)
    sums = np.empty(channels * width, np.int32)
    for y in range(height):
        sums[:] = half
        for k in range(min(down_weights.shape[1], rows - (down[y] - first))):
            weight = down_weights[y, k]
            above = between[down[y] - first + k]
            for i in range(channels * width):
                sums[i] += np.int32(above[i]) * weight
        for c in range(channels):
            for x in range(width):
                out[c, y, x] = min(max(sums[c * width + x] >> _BITS, 0), 255)
