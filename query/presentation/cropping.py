"""A picture as a run's network sees it, for showing: resized and cropped by the preprocessing that the store records.

The scan has its own code for this (pipeline/models/preprocessing.py), which must agree to the last bit and imports
torch. Here Pillow does the same to within what an eye can see.
"""

from __future__ import annotations

import json
from typing import Any

from PIL import Image

from query import live
from query.record.run_tables import Run

_RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
_MOST = 50_000_000  # pixels of a resized picture


def from_dataset(run: Run, image_id: int) -> Image.Image | None:
    """Return a picture of the dataset as the network saw it, read from its own file; None if that is not at hand."""
    image = live.dataset_picture(run, image_id)
    if image is None:
        return None
    return as_seen(image, str(run.model_row["preprocessing"]))


def as_seen(image: Image.Image, preprocessing: str) -> Image.Image | None:
    """Resize and crop a picture. `preprocessing` is the JSON of the table `models`.

    Returns None if the resized picture would be huge.
    """
    p: dict[str, Any] = json.loads(preprocessing)
    width, height, shorter = int(p["width"]), int(p["height"]), int(p["resize"])
    if p["squash"]:
        least = min(width, height)
        size = width * max(shorter, least) // least, height * max(shorter, least) // least
    else:
        scale = shorter / min(image.size)
        size = max(round(image.width * scale), 1), max(round(image.height * scale), 1)
    if size[0] * size[1] > _MOST:
        return None
    left, top = (size[0] - width) // 2, (size[1] - height) // 2  # negative where the picture is padded with black
    resized = image.convert("RGB").resize(size, _RESAMPLING.get(p["interpolation"], Image.Resampling.BILINEAR))
    return resized.crop((left, top, left + width, top + height))
