"""The pixels themselves."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pipeline.featurevis.parameterizations.parameterization import Parameterization, normal


class Pixel(Parameterization):
    """The pixels themselves, before colour matrix and sigmoid."""

    def draw(self, starts: Sequence[torch.Generator]) -> list[Tensor]:
        return [normal(starts, (self.planes, self.height, self.width))]

    def unbounded(self) -> Tensor:
        return self.parameters[0]
