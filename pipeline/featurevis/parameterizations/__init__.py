"""Parameterizations: how a picture is described to the optimizer. The description decides which pictures it finds."""

from pipeline.featurevis.parameterizations.cppn import CPPN
from pipeline.featurevis.parameterizations.fourier import FFT, Maco, spectrum
from pipeline.featurevis.parameterizations.parameterization import COLORS, Parameterization
from pipeline.featurevis.parameterizations.pixel import Pixel
from pipeline.featurevis.parameterizations.pyramid import LaplacianPyramid, Shared, lowres

PARAMETERIZATIONS: dict[str, type[Parameterization]] = {
    "fft": FFT, "pixel": Pixel, "laplacian_pyramid": LaplacianPyramid, "shared": Shared, "cppn": CPPN, "maco": Maco,
}  # fmt: skip

__all__ = [
    "COLORS", "CPPN", "FFT", "PARAMETERIZATIONS", "LaplacianPyramid", "Maco", "Parameterization", "Pixel", "Shared",
    "lowres", "spectrum",
]  # fmt: skip
