"""Transforms, tensor -> tensor: they move, scale or rotate pictures [n, C, H, W] in 0..1.

Random values are drawn from the generator that is passed in, once for the whole batch. After Lucid,
https://github.com/tensorflow/lucid/blob/master/lucid/optvis/transform.py
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.featurevis.parameterizations.fourier import decayed
from pipeline.featurevis.parameterizations.parameterization import COLOR
from pipeline.featurevis.resampling import sampled

Size = tuple[int, int]  # height, width


class Transform(Protocol):
    def __call__(self, x: Tensor, rng: np.random.Generator) -> Tensor: ...

    def sizes(self, size: Size) -> set[Size]:
        """Return every size that pictures of this size can become."""
        ...


@dataclass(frozen=True)
class Pad:
    """Add a border of `width` pixels with the constant `value`, which is grey by default.

    `jitter`: also apply a `Jitter` of that distance, in the same pass.
    """

    width: int
    jitter: int = 0
    value: float = 0.5

    def __call__(self, x: Tensor, rng: np.random.Generator) -> Tensor:
        top, left = _offsets(self.jitter, rng)
        right, bottom = self.jitter - left, self.jitter - top
        return F.pad(x, [self.width - cut for cut in (left, right, top, bottom)], value=self.value)

    def sizes(self, size: Size) -> set[Size]:
        return {(size[0] + 2 * self.width - self.jitter, size[1] + 2 * self.width - self.jitter)}


@dataclass(frozen=True)
class Jitter:
    """Crop a random window that is `distance` pixels smaller in height and in width."""

    distance: int

    def __call__(self, x: Tensor, rng: np.random.Generator) -> Tensor:
        top, left = _offsets(self.distance, rng)
        return x[:, :, top : x.shape[2] - self.distance + top, left : x.shape[3] - self.distance + left]

    def sizes(self, size: Size) -> set[Size]:
        return {(size[0] - self.distance, size[1] - self.distance)}


@dataclass(frozen=True)
class RandomScale:
    """Scale by a random one of these factors, bilinearly. The sides are rounded down, to at least one pixel."""

    factors: tuple[float, ...]

    def __call__(self, x: Tensor, rng: np.random.Generator) -> Tensor:
        factor = self.factors[int(rng.integers(len(self.factors)))]
        size = _scaled((x.shape[2], x.shape[3]), factor)
        return F.interpolate(x, size, mode="bilinear", align_corners=False)

    def sizes(self, size: Size) -> set[Size]:
        return {_scaled(size, factor) for factor in self.factors}


@dataclass(frozen=True)
class RandomRotate:
    """Rotate about the centre by a random one of these angles, bilinearly. What lies outside the picture is black.

    `degrees`: the angles, counterclockwise.
    `factors`: first scale by a random one of these, as `RandomScale` does. Both are done in one interpolation, which
    takes half the time and blurs less.
    `jitter`: afterwards apply a `Jitter` of that distance. The part that it cuts off is not computed.
    """

    degrees: tuple[float, ...]
    factors: tuple[float, ...] = (1.0,)
    jitter: int = 0

    def __call__(self, x: Tensor, rng: np.random.Generator) -> Tensor:
        factor = self.factors[int(rng.integers(len(self.factors)))] if len(self.factors) > 1 else self.factors[0]
        angle = math.radians(self.degrees[int(rng.integers(len(self.degrees)))])
        top, left = _offsets(self.jitter, rng)
        h, w = _scaled((x.shape[2], x.shape[3]), factor)
        window = (slice(top, h - self.jitter + top), slice(left, w - self.jitter + left))
        if angle == 0:
            same = (h, w) == tuple(x.shape[2:])
            return (x if same else F.interpolate(x, (h, w), mode="bilinear", align_corners=False))[:, :, *window]
        cos, sin = math.cos(angle), math.sin(angle)
        # maps an output position to its source, in coordinates of -1..1 along each side
        back = np.array([[cos, -sin * h / w, 0], [sin * w / h, cos, 0]])
        if x.device.type == "cpu" and x.dtype == torch.float32:
            return sampled(x, back, (h, w), (top, left, h - self.jitter, w - self.jitter))
        grid = F.affine_grid(torch.from_numpy(back).to(x)[None], [1, 1, h, w], align_corners=False)
        # as one picture of many channels, so that positions and weights are computed once
        turned = F.grid_sample(x.flatten(0, 1)[None], grid[:, *window], align_corners=False)
        return turned[0].unflatten(0, x.shape[:2])

    def sizes(self, size: Size) -> set[Size]:
        scaled = RandomScale(self.factors).sizes(size)
        return {(height - self.jitter, width - self.jitter) for height, width in scaled}


@dataclass(frozen=True)
class RandomCrop:
    """Crop a window near the centre, `low` to `high` of both sides, and enlarge it to the full size, as MACO does."""

    low: float
    high: float
    spread: float = 0.15  # standard deviation of the window's centre from the picture's, as a share of the side

    def __call__(self, x: Tensor, rng: np.random.Generator) -> Tensor:
        share = rng.uniform(self.low, self.high)
        height, width = x.shape[2:]
        h, w = max(round(share * height), 1), max(round(share * width), 1)
        middle = 0.5 + self.spread * rng.standard_normal(2)
        top = int(np.clip(round(middle[0] * height - h / 2), 0, height - h))
        left = int(np.clip(round(middle[1] * width - w / 2), 0, width - w))
        window = x[:, :, top : top + h, left : left + w]
        return F.interpolate(window, (height, width), mode="bilinear", align_corners=False)

    def sizes(self, size: Size) -> set[Size]:
        return {size}


@dataclass(frozen=True)
class Noise:
    """Add Gaussian noise of standard deviation `sd`, the same to every picture."""

    sd: float

    def __call__(self, x: Tensor, rng: np.random.Generator) -> Tensor:
        noise = rng.standard_normal(tuple(x.shape[1:]), np.float32) * np.float32(self.sd)
        return x + torch.from_numpy(noise).to(x)

    def sizes(self, size: Size) -> set[Size]:
        return {size}


@dataclass(frozen=True)
class Own:
    """Apply a function of your own, [n, C, H, W] -> [n, C, h, w]. It must not draw random values."""

    function: Callable[[Tensor], Tensor]

    def __call__(self, x: Tensor, rng: np.random.Generator) -> Tensor:
        return self.function(x)

    def sizes(self, size: Size) -> set[Size]:
        height, width = self.function(torch.zeros(1, 3, *size)).shape[2:]
        return {(height, width)}


@dataclass(frozen=True)
class CollapseAlpha:
    """Lay pictures, whose last channel is alpha, on a random background, so that the opaque part matters by itself.

    The background is smooth noise, in natural colours if there are three channels, and the same under every picture.
    Mordvintsev et al., 2018.
    """

    sd: float = 0.5

    def __call__(self, x: Tensor, rng: np.random.Generator) -> Tensor:
        channels, height, width = x.shape[1] - 1, *x.shape[2:]
        parts = rng.standard_normal((channels, height, width // 2 + 1, 2), np.float32) * np.float32(self.sd)
        spectrum = torch.view_as_complex(torch.from_numpy(parts) * decayed(height, width)[..., None])
        noise = torch.fft.irfft2(spectrum, s=(height, width))
        if channels == 3:
            noise = torch.einsum("rc,chw->rhw", COLOR / COLOR.norm(dim=0).max(), noise)
        return composed(x, torch.sigmoid(noise).to(x))

    def sizes(self, size: Size) -> set[Size]:
        return {size}


def composed(x: Tensor, background: Tensor | float = 0.5) -> Tensor:
    """Lay pictures [n, C + 1, H, W], whose last channel is alpha, on a background. Return [n, C, H, W]."""
    alpha = x[:, -1:]
    return alpha * x[:, :-1] + (1 - alpha) * background


STANDARD = 128  # side of the canvas, in pixels, that Lucid's distances are meant for
DEGREES, FACTORS = (*range(-10, 11), *(0,) * 5), tuple(1 + (i - 5) / 50 for i in range(11))
# Lucid's pad, jitter, scale, rotate, jitter, in as few passes as possible.
DEFAULT: tuple[Transform, ...] = (Pad(12, jitter=8), RandomRotate(DEGREES, FACTORS, jitter=4))
NAMED: dict[str, tuple[Transform, ...]] = {
    "default": DEFAULT,
    "none": (),
    "crop": (RandomCrop(0.6, 1.0), Jitter(4)),
    "maco": (RandomCrop(0.2, 0.5), Noise(0.05)),
}


def default_of(canvas: Size) -> tuple[Transform, ...]:
    """Return Lucid's transforms, with smaller distances if the shorter side of the canvas is less than 128 pixels.

    The distances shrink in proportion: a border of 12 pixels around a picture of 28 would be most of what the network
    sees.
    """
    side = min(canvas)
    if side >= STANDARD:
        return DEFAULT
    pad, first, last = (round(distance * side / STANDARD) for distance in (12, 8, 4))
    return (Pad(pad, jitter=first), RandomRotate(DEGREES, FACTORS, jitter=last))


def _scaled(size: Size, factor: float) -> Size:
    """Return the scaled size, rounded down but at least one pixel per side."""
    return max(int(factor * size[0]), 1), max(int(factor * size[1]), 1)


def _offsets(distance: int, rng: np.random.Generator) -> tuple[int, int]:
    """Draw (down, across), each from 0 to `distance`. If `distance` is 0, draw nothing from the generator."""
    if distance == 0:
        return 0, 0
    down, across = rng.integers(0, distance + 1, size=2)
    return int(down), int(across)


def compose(transforms: Sequence[Transform], x: Tensor, rng: np.random.Generator) -> Tensor:
    """Apply the transforms one after the other."""
    for transform in transforms:
        x = transform(x, rng)
    return x


def sizes(transforms: Sequence[Transform], size: Size) -> set[Size]:
    """Return every size that pictures of this size can become."""
    reached = {size}
    for transform in transforms:
        reached = {after for before in reached for after in transform.sizes(before)}
    return reached
