"""Pictures as sums of smaller ones that are enlarged. A group of pictures may share some of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.featurevis.parameterizations.fourier import FFT
from pipeline.featurevis.parameterizations.parameterization import Parameterization, normal

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
