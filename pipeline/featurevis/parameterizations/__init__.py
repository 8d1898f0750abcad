"""Parameterizations: how a picture is described to the optimizer, which decides what it finds."""

from .cppn import CPPN
from .fourier import FFT, Maco, spectrum
from .parameterization import COLORS, Parameterization
from .pixel import Pixel
from .pyramid import LaplacianPyramid, Shared

PARAMETERIZATIONS: dict[str, type[Parameterization]] = {
    "fft": FFT, "pixel": Pixel, "laplacian_pyramid": LaplacianPyramid, "shared": Shared, "cppn": CPPN, "maco": Maco,
}  # fmt: skip

__all__ = [
    "COLORS", "CPPN", "FFT", "PARAMETERIZATIONS", "LaplacianPyramid", "Maco", "Parameterization", "Pixel", "Shared",
    "spectrum",
]  # fmt: skip
