"""What a parameterization is: from its parameters it makes pictures [n, C, H, W] in 0..1.

After Lucid's `param`, https://github.com/tensorflow/lucid/tree/master/lucid/optvis/param; the reasons for the
spectrum and for the colour matrix are in Olah et al., Feature Visualization, https://distill.pub/2017/feature-visualization
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

SD = 0.01  # standard deviation of the random start
COLORS = ("decorrelated", "plain", "grayscale")
# The square root of ImageNet's colour correlation. Its columns are independent directions of colour.
COLOR = torch.tensor([[0.26, 0.09, 0.02], [0.27, 0.00, -0.05], [0.27, -0.09, 0.03]])


class Parameterization(ABC):
    """Pictures that depend on `parameters`, which the optimizer changes. Calling it returns the pictures.

    `learning_rate` and `optimizer` are used unless the settings give others.
    """

    learning_rate = 0.05
    optimizer = "adam"
    has_colors = True  # whether the planes are colours that can be decorrelated

    def __init__(
        self,
        starts: Sequence[torch.Generator],
        shape: tuple[int, int, int],
        color: str = "decorrelated",
        alpha: bool = False,
        group: int = 1,
        device: torch.device | str = "cpu",
    ):
        """Make one picture of `shape` [C, H, W] per generator in `starts`, which must be used for nothing else.

        `alpha`: whether the pictures have one channel more. `group`: the number of consecutive pictures that may share
        parameters.
        """
        channels, self.height, self.width = shape
        self.channels, self.alpha, self.group = channels, alpha, group
        self.planes = (1 if color == "grayscale" else channels) + alpha
        matrix = COLOR / COLOR.norm(dim=0).max()
        decorrelated = color == "decorrelated" and channels == 3 and self.has_colors
        self.color = matrix.to(device) if decorrelated else None
        self.parameters = [x.to(device).requires_grad_() for x in self.draw(starts)]

    @abstractmethod
    def draw(self, starts: Sequence[torch.Generator]) -> list[Tensor]:
        """Return the parameters at the start, each [n, ...]. Each picture is drawn from its own generator."""

    @abstractmethod
    def unbounded(self) -> Tensor:
        """Return the pictures before the colour matrix and the sigmoid: [n, planes, H, W] around zero.

        If `self.color` is a matrix, the colours are decorrelated, and the matrix makes them red, green and blue.
        """

    def __call__(self) -> Tensor:
        """Return the pictures, [n, C, H, W] in 0..1. Alpha, if there is any, is one more channel, the last."""
        x = self.unbounded()
        color, rest = x[:, : self.planes - self.alpha], x[:, self.planes - self.alpha :]
        if self.color is not None:
            color = (self.color @ color.flatten(2)).unflatten(2, x.shape[2:])
            x = torch.cat([color, rest], 1) if self.alpha else color
        x = by_picture(torch.sigmoid, x)
        if x.shape[1] == self.channels + self.alpha:
            return x
        return torch.cat([x[:, :1].expand(-1, self.channels, -1, -1), x[:, 1:]], 1)  # grayscale


def by_picture(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Apply a function to one picture at a time, so that the result does not depend on a picture's place in the batch.

    A vectorized loop and its remainder differ in the last bit of an exponential or an arc tangent, and where the
    remainder starts depends on the size of the whole tensor.
    """
    return torch.stack([function(picture) for picture in x])


def normal(starts: Sequence[torch.Generator], shape: Sequence[int], sd: float = SD) -> Tensor:
    """Draw normal values [n, *shape] of standard deviation `sd`, each picture from its own generator."""
    return torch.stack([torch.randn(tuple(shape), generator=generator) for generator in starts]) * sd
