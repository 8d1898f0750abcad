"""What a parameterization is: from its parameters it makes pictures [n, C, H, W] in 0..1.

After Lucid's `param`, https://github.com/tensorflow/lucid/tree/master/lucid/optvis/param; the reasons for both the
spectrum and the colour matrix are in Olah et al., Feature Visualization, https://distill.pub/2017/feature-visualization
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

SD = 0.01  # of the random start
COLORS = ("decorrelated", "plain", "grayscale")
# Square root of the colour correlation of ImageNet; columns are independent directions of colour.
COLOR = torch.tensor([[0.26, 0.09, 0.02], [0.27, 0.00, -0.05], [0.27, -0.09, 0.03]])


class Parameterization(ABC):
    """`parameters` is what the optimizer changes; calling gives the pictures.

    `learning_rate` and `optimizer` are what it works with, unless the settings say otherwise.
    """

    learning_rate = 0.05
    optimizer = "adam"
    has_colors = True  # whether its planes are colours that can be decorrelated

    def __init__(
        self,
        starts: Sequence[torch.Generator],
        shape: tuple[int, int, int],
        color: str = "decorrelated",
        alpha: bool = False,
        group: int = 1,
        device: torch.device | str = "cpu",
    ):
        """One picture of `shape` [C, H, W] for each generator in `starts`, which draws nothing else; with `alpha` one
        channel more. `group` pictures that follow each other may share parameters."""
        channels, self.height, self.width = shape
        self.channels, self.alpha, self.group = channels, alpha, group
        self.planes = (1 if color == "grayscale" else channels) + alpha
        matrix = COLOR / COLOR.norm(dim=0).max()
        decorrelated = color == "decorrelated" and channels == 3 and self.has_colors
        self.color = matrix.to(device) if decorrelated else None
        self.parameters = [x.to(device).requires_grad_() for x in self.draw(starts)]

    @abstractmethod
    def draw(self, starts: Sequence[torch.Generator]) -> list[Tensor]:
        """The parameters at the start, each [n, ...], a picture from its own generator."""

    @abstractmethod
    def unbounded(self) -> Tensor:
        """[n, planes, H, W] around zero, in decorrelated colours where there are three."""

    def __call__(self) -> Tensor:
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
    """A vectorized loop and its remainder differ in the last bit of an exponential or arc tangent, and where the
    remainder falls depends on the whole tensor's size: one call a picture makes pictures independent of their place."""
    return torch.stack([function(picture) for picture in x])


def normal(starts: Sequence[torch.Generator], shape: Sequence[int], sd: float = SD) -> Tensor:
    """[n, *shape], a picture from its own generator."""
    return torch.stack([torch.randn(tuple(shape), generator=generator) for generator in starts]) * sd
