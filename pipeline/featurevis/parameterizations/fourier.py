"""Pictures as sums of waves, of which all coefficients are free (`FFT`) or only the phases (`Maco`)."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pipeline.featurevis.parameterizations.parameterization import COLOR, Parameterization, by_picture, normal


def frequencies(height: int, width: int) -> Tensor:
    """Return the cycles per pixel of each coefficient of a real Fourier transform: float64 [H, W // 2 + 1]."""
    return torch.hypot(
        torch.fft.fftfreq(height, dtype=torch.float64)[:, None],
        torch.fft.rfftfreq(width, dtype=torch.float64)[None, :],
    )


def decayed(height: int, width: int) -> Tensor:
    """Return the scale of each Fourier coefficient: float32 [H, W // 2 + 1].

    It is the inverse of the frequency, times the factor that makes the transform unitary, divided by 4 as in Lucid.
    """
    least = 1 / max(width, height)
    return (math.sqrt(width * height) / frequencies(height, width).clamp(min=least) / 4).float()


class FFT(Parameterization):
    """Fourier coefficients (real and imaginary parts), scaled so that all frequencies learn at the same rate."""

    def draw(self, starts: Sequence[torch.Generator]) -> list[Tensor]:
        return [normal(starts, (self.planes, self.height, self.width // 2 + 1, 2))]

    @functools.cached_property
    def scale(self) -> Tensor:
        return decayed(self.height, self.width)[..., None].to(self.parameters[0].device)

    def unbounded(self) -> Tensor:
        spectrum = torch.view_as_complex(self.parameters[0] * self.scale)
        return torch.fft.irfft2(spectrum, s=(self.height, self.width))


# The amplitude of natural pictures at f cycles per pixel is gain * f ** -decay, for each column of COLOR. Both were
# fitted to 500 ImageNet photographs with `spectrum`. Only the ratios of the gains matter.
GAINS, DECAYS = (26.7, 25.2, 40.2), (1.29, 1.26, 1.12)


class Maco(Parameterization):
    """Fourier phases. The magnitudes are fixed at those of natural pictures, so that no frequency can grow too strong.

    Fel et al., Unlocking Feature Visualization for Deeper Networks with MAgnitude Constrained Optimization (2023). It
    works best with random crops: transforms "maco", a large canvas and `input` "model".
    """

    learning_rate = 1.0
    optimizer = "nadam"

    def draw(self, starts: Sequence[torch.Generator]) -> list[Tensor]:
        return [normal(starts, (self.planes, self.height, self.width // 2 + 1), sd=1.0)]

    @functools.cached_property
    def magnitude(self) -> Tensor:
        """The fixed magnitudes: float32 [planes, H, W // 2 + 1]. Set it to the `spectrum` of pictures of your own."""
        f = frequencies(self.height, self.width)
        f = f.clamp(min=1 / max(self.height, self.width))
        planes = [g * f**-d for g, d in zip(GAINS, DECAYS, strict=True)]
        chosen = planes if self.color is not None else planes[:1] * (self.planes - self.alpha)
        magnitudes = torch.stack([*chosen, *planes[: int(self.alpha)]]).float()
        magnitudes[:, 0, 0] = 0  # standardizing sets the mean
        return magnitudes.to(self.parameters[0].device)

    def unbounded(self) -> Tensor:
        phase = by_picture(_standardized, self.parameters[0])
        spectrum = by_picture(lambda p: torch.polar(self.magnitude, p), phase)
        return by_picture(_standardized, torch.fft.irfft2(spectrum, s=(self.height, self.width)))


def spectrum(pictures: Tensor) -> Tensor:
    """Measure the mean magnitude of the Fourier coefficients of pictures [n, C, H, W] in 0..1: [C, H, W // 2 + 1].

    It is measured before the sigmoid, and in decorrelated colours if C is 3.
    """
    x = torch.logit(pictures.double().clamp(0.01, 0.99))
    if x.shape[1] == 3:
        matrix = (COLOR / COLOR.norm(dim=0).max()).double()
        x = (torch.linalg.inv(matrix) @ x.flatten(2)).unflatten(2, x.shape[2:])
    return torch.fft.rfft2(x - x.mean((2, 3), keepdim=True)).abs().mean(0).float()


def _standardized(x: Tensor) -> Tensor:
    return (x - x.mean()) / (x.std() + 1e-4)
