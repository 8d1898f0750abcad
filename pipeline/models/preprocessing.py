"""The preprocessing of a model, in two parts: pixels (uint8, per picture, in the decoding threads) and normalization.

Normalization is done per batch, on the device of the network, so that threads pass on bytes instead of floats.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from pipeline.data.decode import BadImageError
from store.errors import UsageError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
MOST_RESIZED = 50_000_000  # pixels of a resized picture; without a limit, a thin strip would take gigabytes
RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


@dataclass(frozen=True)
class Preprocess:
    """PIL image -> float32 tensor [channels, height, width], which is the input of the network.

    The short side is resized to `resize` pixels. If `squash` is set, the picture is resized to the shape of the input
    instead, whose short side becomes `resize`; smaller numbers mean the input's own size. Then the centre is cropped,
    values are scaled to 0..1, and each channel becomes `(x - mean) / std`.
    """

    height: int = 224
    width: int = 224
    resize: int = 256
    squash: bool = False
    interpolation: str = "bilinear"
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    def __post_init__(self) -> None:
        if self.interpolation not in RESAMPLING:
            raise UsageError(f"interpolation {self.interpolation!r} is not one of {', '.join(RESAMPLING)}")
        if len(self.mean) != len(self.std) or not self.mean:
            raise UsageError(f"mean and std need equally many entries, found {len(self.mean)} and {len(self.std)}")

    @property
    def channels(self) -> int:
        return len(self.mean)

    def pixels(self, image: Image.Image) -> NDArray[np.uint8]:
        """Resize and crop a picture: uint8 [channels, height, width], the same bytes as with Pillow's resize.

        Raises UsageError if the network takes neither 1 nor 3 channels, and BadImageError if the resized picture
        would be too large.
        """
        if self.channels not in (1, 3):
            raise UsageError(
                f"this network takes {self.channels} channels, but pictures have 1 or 3: it cannot be scanned"
            )
        image = image.convert("L" if self.channels == 1 else "RGB")
        size = self._resized(image.width, image.height)
        if size[0] * size[1] > MOST_RESIZED:
            raise BadImageError(
                f"{image.width} x {image.height} would become {size[0]} x {size[1]} pixels when resized"
            )
        return _resized_crop(image, size, self.height, self.width, self.interpolation)

    def normalize(self, x: Tensor) -> Tensor:
        """Normalize pictures [N, channels, H, W] with values in 0..1: subtract the mean and divide by the deviation."""
        mean = torch.tensor(self.mean, dtype=x.dtype, device=x.device).view(-1, 1, 1)
        std = torch.tensor(self.std, dtype=x.dtype, device=x.device).view(-1, 1, 1)
        return (x - mean) / std

    def resized(self, x: Tensor) -> Tensor:
        """Resize pictures [n, channels, h, w] to the network's input size: bilinear, antialiased if a side shrinks."""
        size = (self.height, self.width)
        if tuple(x.shape[2:]) == size:
            return x
        smaller = size[0] < x.shape[2] or size[1] < x.shape[3]
        return F.interpolate(x, size, mode="bilinear", align_corners=False, antialias=smaller)

    def __call__(self, image: Image.Image) -> Tensor:
        return self.normalize(torch.from_numpy(self.pixels(image))[None].float() / 255)[0]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def _resized(self, width: int, height: int) -> tuple[int, int]:
        if self.squash:
            shorter = min(self.width, self.height)
            return self.width * max(self.resize, shorter) // shorter, self.height * max(self.resize, shorter) // shorter
        short, long = min(width, height), max(width, height)
        scaled = max(int(self.resize * long / short), 1)
        return (self.resize, scaled) if width <= height else (scaled, self.resize)


def _resized_crop(
    image: Image.Image, size: tuple[int, int], height: int, width: int, interpolation: str
) -> NDArray[np.uint8]:
    """Resize a picture to `size`, (width, height), and crop the centre: uint8 [channels, height, width].

    The crop is torchvision's: it rounds half to even, and pads with black if the resized picture is smaller.
    """
    from pipeline.models import pillow_resize  # imports numba, which opening a model does not need

    left, across = _centre(size[0], width)
    top, down = _centre(size[1], height)
    if size == image.size or not pillow_resize.is_known(image.size, size, interpolation):
        whole = _planes(image if size == image.size else image.resize(size, RESAMPLING[interpolation]))
        part = whole.transpose(2, 0, 1)[:, top : top + down, left : left + across]
    else:
        part = pillow_resize.resized_crop(_planes(image), size, (left, top, across, down), interpolation)
    if (down, across) != (height, width):
        above, before = (height - down) // 2, (width - across) // 2
        part = np.pad(part, ((0, 0), (above, height - down - above), (before, width - across - before)))
    return np.array(part, order="C")


def _centre(size: int, wanted: int) -> tuple[int, int]:
    """Return where the centre begins along one axis, and how much of `wanted` there is."""
    return (round((size - wanted) / 2.0), wanted) if size > wanted else (0, size)


def _planes(image: Image.Image) -> NDArray[np.uint8]:
    array = np.asarray(image)
    return array[:, :, None] if array.ndim == 2 else array


def from_torchvision(preset: Any) -> Preprocess:
    """Convert a torchvision `ImageClassification` preset."""
    crop, resize = int(preset.crop_size[0]), int(preset.resize_size[0])
    interpolation = str(preset.interpolation.value)
    return Preprocess(crop, crop, resize, False, interpolation, tuple(preset.mean), tuple(preset.std))


def from_timm(config: Mapping[str, Any]) -> Preprocess:
    """Convert timm's resolved data config (`timm.data.resolve_data_config`). Raises UsageError for its crop mode."""
    _, height, width = config["input_size"]
    mode = config.get("crop_mode", "center")
    if mode not in ("center", "squash"):
        raise UsageError(f"timm's crop mode {mode!r} is not supported: use center or squash")
    resize = math.floor(height / float(config["crop_pct"]))
    interpolation = str(config["interpolation"])
    return Preprocess(
        height, width, resize, mode == "squash", interpolation, tuple(config["mean"]), tuple(config["std"])
    )


def from_mapping(values: Mapping[str, Any], where: str) -> Preprocess:
    """Convert the dict that a `python:` factory returned beside its network.

    Raises UsageError, which begins with `where`, for an unknown key or a value of the wrong type.
    """
    known = {f.name for f in fields(Preprocess)}
    for key in values:
        if key not in known:
            raise UsageError(f"{where}: unknown preprocessing key {key!r}; known are {', '.join(sorted(known))}")
    plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    for key, value in plain.items():
        wanted = (
            tuple if key in ("mean", "std") else str if key == "interpolation" else bool if key == "squash" else int
        )
        if not isinstance(value, wanted) or (isinstance(value, int) and wanted is int and value < 1):
            raise UsageError(f"{where}: preprocessing {key} = {value!r}: expected {_EXPECTED[wanted]}")
    if "height" in plain or "width" in plain:  # one alone means a square; without `resize`, no margin is cut
        plain.setdefault("height", plain.get("width"))
        plain.setdefault("width", plain["height"])
        plain.setdefault("resize", min(plain["height"], plain["width"]))
    if plain.get("squash"):
        plain.setdefault("resize", Preprocess.height)
    return Preprocess(**plain)


_EXPECTED = {
    tuple: "a list of numbers, one per channel",
    str: "a word",
    bool: "true or false",
    int: "a whole number above 0",
}
