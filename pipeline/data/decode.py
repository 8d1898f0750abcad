"""Decoding: from the bytes of a picture to an upright RGB picture.

It handles grey, CMYK, 16-bit grey, palette and alpha pictures, and rotation by EXIF.
"""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
MOST_PIXELS = 178_956_970  # Pillow warns above half of this and raises above it; half of it is the limit here


class BadImageError(Exception):
    """A file cannot be decoded as a picture. The text is the reason, which is stored in `images.reason`."""


def read_size(data: bytes) -> tuple[int, int]:
    """Read the width and height in pixels, after EXIF rotation, from the header alone. Raises BadImageError."""
    image = _open(data)
    turned = _orientation(image) in (5, 6, 7, 8)
    return (image.height, image.width) if turned else (image.width, image.height)


def open_image(source: bytes | Path | str) -> Image.Image:
    """Decode a picture to mode RGB, upright, with transparent parts on white. Raises BadImageError with the reason."""
    image = _open(source if isinstance(source, bytes) else _read(Path(source)))
    try:
        image.load()
        if _orientation(image) != 1:
            image = ImageOps.exif_transpose(image)
        return _to_rgb(image)
    except BadImageError:
        raise
    except Exception as error:  # Pillow's codecs raise OSError, SyntaxError, struct.error, ValueError, ...
        raise BadImageError(_reason(error)) from error


def is_plain_jpeg(data: bytes) -> bool:
    """Return whether a picture is a grey or RGB JPEG without EXIF rotation. Raises BadImageError."""
    image = _open(data)
    return image.format == "JPEG" and image.mode in ("RGB", "L") and _orientation(image) == 1


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadImageError(f"cannot be read: {error.strerror}") from error


def _open(data: bytes) -> Image.Image:
    if not data:
        raise BadImageError("empty file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # checked below, in every thread
            image = Image.open(io.BytesIO(data))
    except UnidentifiedImageError:
        raise BadImageError("not a picture in a known format") from None
    except Exception as error:
        raise BadImageError(_reason(error)) from error
    if image.width * image.height > MOST_PIXELS // 2:
        raise BadImageError(f"{image.width} x {image.height} pixels are more than the {MOST_PIXELS // 2} allowed")
    return image


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, or 1 (upright) if the EXIF block is broken."""
    try:
        return int(image.getexif().get(0x0112, 1))
    except Exception:  # SyntaxError, struct.error, ...: a broken EXIF block does not make the pixels unusable
        return 1


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        image = _from_integers(image)
    elif image.mode == "F":
        raise BadImageError("floating-point pixels have no agreed range")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def _from_integers(image: Image.Image) -> Image.Image:
    """Convert 16-bit grey by mapping the full range onto 0..255. Pillow's own conversion saturates above 255."""
    values = np.asarray(image).astype(np.int64)
    if values.size and (values.min() < 0 or values.max() > 65_535):
        raise BadImageError("integer pixels beyond 16 bits have no agreed range")
    return Image.fromarray(((values * 255 + 32_767) // 65_535).astype(np.uint8))


def _reason(error: Exception) -> str:
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    return text if "0x" not in text else type(error).__name__  # memory addresses must not get into a committed file
