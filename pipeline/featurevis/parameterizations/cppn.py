"""Pictures that a small network computes from the coordinates alone (a CPPN). They are smooth at any size.

Stanley (2007); Mordvintsev et al., Differentiable Image Parameterizations,
https://distill.pub/2018/differentiable-parameterizations
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pipeline.featurevis.parameterizations.parameterization import Parameterization, normal

HIDDEN, LAYERS = 24, 8


class CPPN(Parameterization):
    """One network per picture: 1 x 1 convolutions of 24 channels, with an arc tangent and its square between them."""

    learning_rate = 0.005
    has_colors = False

    def draw(self, starts: Sequence[torch.Generator]) -> list[Tensor]:
        """Return weight [n, out, in] and bias [n, out] of each layer in turn. The last layer is zero: an even grey."""
        parameters: list[Tensor] = []
        wide = 2
        for layer in range(LAYERS):
            last = layer == LAYERS - 1
            out = self.planes if last else HIDDEN
            parameters.append(normal(starts, (out, wide), sd=0.0 if last else math.sqrt(1 / wide)))
            parameters.append(torch.zeros(len(starts), out))
            wide = 2 * out
        return parameters

    @functools.cached_property
    def coordinates(self) -> Tensor:
        """Row and column of each pixel, with standard deviation 1 along each side: float32 [2, H * W]."""
        far = math.sqrt(3)
        rows, columns = torch.linspace(-far, far, self.height), torch.linspace(-far, far, self.width)
        grid = torch.stack(torch.meshgrid(rows, columns, indexing="ij")).flatten(1)
        return grid.to(self.parameters[0].device)

    def unbounded(self) -> Tensor:
        n = len(self.parameters[0])
        return torch.stack([self._picture(i) for i in range(n)])  # one at a time: see `by_picture`

    def _picture(self, number: int) -> Tensor:
        x = self.coordinates
        for layer in range(LAYERS):
            weight, bias = self.parameters[2 * layer][number], self.parameters[2 * layer + 1][number]
            x = torch.addmm(bias[:, None], weight, x)
            if layer < LAYERS - 1:
                x = torch.atan(x)
                x = torch.cat([x / 0.67, x * x / 0.6])
        if x.requires_grad:
            # The gradient is part of the whole batch's and may be misaligned in memory, which changes how products
            # round, so copy it.
            x.register_hook(torch.clone)
        return x.unflatten(1, (self.height, self.width))
