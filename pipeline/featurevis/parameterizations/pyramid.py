"""Pictures as sums of smaller ones that are enlarged. A group of pictures may share some of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.featurevis.parameterizations.fourier import FFT
from pipeline.featurevis.parameterizations.parameterization import Parameterization, normal
from store.errors import UsageError

Offset = bool | int | tuple[bool | int, bool | int] | None
LEVELS = 4
# (number of pictures, divisor of the sides) of each shared layer in Lucid's aligned interpolation. A layer of one
# picture is the same for the whole group. A layer of two is blended: the first picture of the group gets the first of
# them, the last picture the second.
SHARED = ((1, 2), (1, 4), (1, 8), (2, 8), (1, 16), (2, 16))


class LaplacianPyramid(Parameterization):
    """Four pictures, each with half the sides of the one before, enlarged and added."""

    def draw(self, starts: Sequence[torch.Generator]) -> list[Tensor]:
        sizes = [_divided(self.height, self.width, 2**level) for level in range(LEVELS)]
        return [normal(starts, (self.planes, *size)) for size in sizes]

    def unbounded(self) -> Tensor:
        large = [enlarged(level, self.height, self.width) for level in self.parameters]
        return torch.stack(large).sum(0)


class Shared(FFT):
    """Fourier coefficients of each picture, plus coarse layers that its group shares.

    The shared layers make similar things appear at the same positions.
    """

    def draw(self, starts: Sequence[torch.Generator]) -> list[Tensor]:
        first = starts[:: self.group]
        own = super().draw(starts)
        shared = [
            normal(first, (pictures, self.planes, *_divided(self.height, self.width, divisor)))
            for pictures, divisor in SHARED
        ]
        return [*own, *shared]

    def unbounded(self) -> Tensor:
        x = super().unbounded()
        for layer in self.parameters[1:]:
            groups, pictures = layer.shape[:2]
            large = enlarged(layer.flatten(0, 1), self.height, self.width).unflatten(0, (groups, pictures))
            x = x + _blended(large, self.group).flatten(0, 1)
        return x


class Lowres(Parameterization):
    """A small picture that is enlarged, like Lucid's `lowres_tensor`."""

    divisor = 8
    offset: Offset = None

    def draw(self, starts: Sequence[torch.Generator]) -> list[Tensor]:
        return [normal(starts, (self.planes, *_divided(self.height, self.width, self.divisor)))]

    def unbounded(self) -> Tensor:
        (small,) = self.parameters
        return shifted(enlarged(small, self.height, self.width), self.offset, (small.shape[2], small.shape[3]))


def lowres(divisor: int = 8, offset: Offset = None) -> type[Lowres]:
    """Return a parameterization for `parameterization=`: a picture of 1 / divisor of the sides, enlarged.

    `offset` moves it down and to the right, as in `shifted`.
    """
    if divisor < 1:
        raise UsageError(f"divisor = {divisor}: must be at least 1")
    return type("Lowres", (Lowres,), {"divisor": divisor, "offset": offset})


def shifted(x: Tensor, offset: Offset, small: tuple[int, int]) -> Tensor:
    """Move pictures [n, C, H, W] down and to the right, and mirror them at the edge that this opens.

    `offset`: pixels, for both axes or (down, right). True is half a pixel of the `small` picture of height and width
    that was enlarged; None and False are nothing. As `offset` of Lucid's `lowres_tensor`, there also for other axes.
    """
    pair = offset if isinstance(offset, tuple) else (offset, offset)
    for axis, (given, length) in enumerate(zip(pair, small, strict=True), start=2):
        size = x.shape[axis]
        pixels = int(size / length / 2) if given is True else int(given or 0)
        if not 0 <= pixels <= size:
            raise UsageError(f"offset = {offset!r}: must be from 0 to {size}, the side of the picture")
        if pixels:
            mirrored = x.narrow(axis, 0, pixels).flip(axis)
            x = torch.cat([mirrored, x.narrow(axis, 0, size - pixels)], axis)
    return x


def enlarged(x: Tensor, height: int, width: int) -> Tensor:
    """Enlarge [n, C, h, w] to [n, C, height, width], bilinearly, with the corners aligned."""
    if tuple(x.shape[2:]) == (height, width):
        return x
    return F.interpolate(x, (height, width), mode="bilinear", align_corners=True)


def _blended(x: Tensor, n: int) -> Tensor:
    """Expand [groups, 1 or 2, ...] to [groups, n, ...]: repeat one picture, or blend from the first to the second."""
    if x.shape[1] == 1:
        return x.expand(-1, n, *x.shape[2:])
    weight = torch.linspace(0, 1, n, dtype=x.dtype, device=x.device).view(1, n, 1, 1, 1)
    return (1 - weight) * x[:, :1] + weight * x[:, 1:]


def _divided(height: int, width: int, divisor: int) -> tuple[int, int]:
    return max(height // divisor, 1), max(width // divisor, 1)
