"""Pictures described by their pixels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pipeline.featurevis.parameterizations.parameterization import Parameterization, normal


class Pixel(Parameterization):
    """The parameters are the pixels, before the colour matrix and the sigmoid."""

    def draw(self, starts: Sequence[torch.Generator]) -> list[Tensor]:
        return [normal(starts, (self.planes, self.height, self.width))]

    def unbounded(self) -> Tensor:
        return self.parameters[0]
