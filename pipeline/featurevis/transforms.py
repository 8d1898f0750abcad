"""A transform is tensor -> tensor: of pictures [n, C, H, W] in 0..1 it makes moved, scaled or turned ones.

What is random is drawn from the generator handed in, once for the whole batch. After Lucid,
https://github.com/tensorflow/lucid/blob/master/lucid/optvis/transform.py
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


class Transform(Protocol):
    def __call__(self, x: Tensor, rng: np.random.Generator) -> Tensor: ...

    def sizes(self, size: int) -> set[int]:
        """Every length that a side of this length can become."""
        ...


@dataclass(frozen=True)
class Pad:
    """A border of constant grey."""

    width: int
    value: float = 0.5

    def __call__(self, x: Tensor, rng: np.random.Generator) -> Tensor:
        return F.pad(x, [self.width] * 4, value=self.value)

    def sizes(self, size: int) -> set[int]:
        return {size + 2 * self.width}


@dataclass(frozen=True)
class Jitter:
    """A random crop smaller by `distance` in height and width."""

    distance: int

    def __call__(self, x: Tensor, rng: np.random.Generator) -> Tensor:
        top, left = (int(offset) for offset in rng.integers(0, self.distance + 1, size=2))
        height, width = x.shape[2] - self.distance, x.shape[3] - self.distance
        return x[:, :, top : top + height, left : left + width]

    def sizes(self, size: int) -> set[int]:
        return {size - self.distance}


@dataclass(frozen=True)
class RandomScale:
    """Bilinear, by one of these factors; sides are rounded down."""

    factors: tuple[float, ...]

    def __call__(self, x: Tensor, rng: np.random.Generator) -> Tensor:
        factor = self.factors[int(rng.integers(len(self.factors)))]
        size = (int(factor * x.shape[2]), int(factor * x.shape[3]))
        return F.interpolate(x, size, mode="bilinear", align_corners=False)

    def sizes(self, size: int) -> set[int]:
        return {int(factor * size) for factor in self.factors}


@dataclass(frozen=True)
class RandomRotate:
    """Bilinear, about the centre, by one of these angles in degrees, counterclockwise; what comes in is black."""

    degrees: tuple[float, ...]

    def __call__(self, x: Tensor, rng: np.random.Generator) -> Tensor:
        angle = math.radians(self.degrees[int(rng.integers(len(self.degrees)))])
        if angle == 0:
            return x
        (n, _, h, w), cos, sin = x.shape, math.cos(angle), math.sin(angle)
        # from an output place to its source, in coordinates of -1..1 along each side
        back = torch.tensor([[cos, -sin * h / w, 0], [sin * w / h, cos, 0]], dtype=x.dtype, device=x.device)
        grid = F.affine_grid(back[None], [1, 1, h, w], align_corners=False)
        return F.grid_sample(x, grid.expand(n, -1, -1, -1), align_corners=False)

    def sizes(self, size: int) -> set[int]:
        return {size}


DEFAULT: tuple[Transform, ...] = (
    Pad(12),
    Jitter(8),
    RandomScale(tuple(1 + (i - 5) / 50 for i in range(11))),
    RandomRotate((*range(-10, 11), *(0,) * 5)),
    Jitter(4),
)
NAMED: dict[str, tuple[Transform, ...]] = {"default": DEFAULT, "none": ()}


def compose(transforms: Sequence[Transform], x: Tensor, rng: np.random.Generator) -> Tensor:
    """One after the other."""
    for transform in transforms:
        x = transform(x, rng)
    return x


def sizes(transforms: Sequence[Transform], size: int) -> set[int]:
    """Every length that a side of this length can become."""
    found = {size}
    for transform in transforms:
        found = {after for before in found for after in transform.sizes(before)}
    return found
