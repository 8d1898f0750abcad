"""A parameterization is () -> image: from its parameters it makes pictures [n, C, H, W] in 0..1.

After Lucid's `param`, https://github.com/tensorflow/lucid/tree/master/lucid/optvis/param; the reasons for both the
spectrum and the colour matrix are in Olah et al., Feature Visualization, https://distill.pub/2017/feature-visualization
"""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

SD = 0.01  # of the random start
# Square root of the colour correlation of ImageNet; columns are independent directions of colour.
COLOR = torch.tensor([[0.26, 0.09, 0.02], [0.27, 0.00, -0.05], [0.27, -0.09, 0.03]])


class Parameterization(ABC):
    """`parameters` is what the optimizer changes; calling gives the pictures."""

    def __init__(
        self,
        starts: Sequence[torch.Generator],
        shape: tuple[int, int, int],
        decorrelate: bool = True,
        device: torch.device | str = "cpu",
    ):
        """One picture of `shape` [C, H, W] for each generator in `starts`, which draws nothing else."""
        self.shape = shape
        drawn = torch.stack([torch.randn(self.parameter_shape, generator=generator) for generator in starts])
        self.parameters = (drawn * SD).to(device).requires_grad_()
        matrix = COLOR / COLOR.norm(dim=0).max()
        self.color = matrix.to(device) if decorrelate and shape[0] == 3 else None

    @property
    @abstractmethod
    def parameter_shape(self) -> tuple[int, ...]:
        """Of one picture."""

    @abstractmethod
    def unbounded(self) -> Tensor:
        """[n, C, H, W] around zero, in decorrelated colours where there are three."""

    def __call__(self) -> Tensor:
        x = self.unbounded()
        if self.color is not None:
            x = (self.color @ x.flatten(2)).unflatten(2, x.shape[2:])
        # A vectorized loop and its remainder differ in the last bit of an exponential, and where the remainder
        # falls depends on the whole tensor's size: one call a picture makes pictures independent of their place.
        return torch.stack([torch.sigmoid(picture) for picture in x])


class Pixel(Parameterization):
    """The pixels themselves."""

    @property
    def parameter_shape(self) -> tuple[int, ...]:
        return self.shape

    def unbounded(self) -> Tensor:
        return self.parameters


class FFT(Parameterization):
    """Fourier coefficients (real, imaginary), scaled so that all frequencies learn at the same rate."""

    @property
    def parameter_shape(self) -> tuple[int, ...]:
        channels, height, width = self.shape
        return channels, height, width // 2 + 1, 2

    @functools.cached_property
    def scale(self) -> Tensor:
        """[H, W // 2 + 1, 1]: the inverse of the frequency, the unitary factor of the transform, and Lucid's 4."""
        _, height, width = self.shape
        frequency = torch.hypot(
            torch.fft.fftfreq(height, dtype=torch.float64)[:, None],
            torch.fft.rfftfreq(width, dtype=torch.float64)[None, :],
        )
        scale = math.sqrt(width * height) / frequency.clamp(min=1 / max(width, height)) / 4
        return scale.float()[..., None].to(self.parameters.device)

    def unbounded(self) -> Tensor:
        return torch.fft.irfft2(torch.view_as_complex(self.parameters * self.scale), s=self.shape[1:])


PARAMETERIZATIONS: dict[str, type[Parameterization]] = {"fft": FFT, "pixel": Pixel}
