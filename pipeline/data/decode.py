"""Picture bytes to an upright RGB picture: grey, CMYK, 16-bit, palette, alpha, rotated by EXIF, whatever it is."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
MOST_PIXELS = 178_956_970  # twice Pillow's warning: where it, too, raises


class BadImageError(Exception):
    """A file that is no decodable picture; the text is the reason that `images.reason` keeps."""


def read_size(data: bytes) -> tuple[int, int]:
    """Width and height in pixels after EXIF rotation, from the header alone. Raises BadImageError."""
    image = _open(data)
    turned = _orientation(image) in (5, 6, 7, 8)
    return (image.height, image.width) if turned else (image.width, image.height)


def open_image(source: bytes | Path | str) -> Image.Image:
    """Decodes a picture to mode RGB, upright. Transparent parts lie on white. Raises BadImageError with the reason."""
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
    """Whether a picture is a JPEG in grey or RGB that need not be turned. Raises BadImageError."""
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
    """The EXIF orientation; 1, upright, where the EXIF block is broken."""
    try:
        return int(image.getexif().get(0x0112, 1))
    except Exception:  # SyntaxError, struct.error, ...: from a block that says nothing about the pixels
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
    """16-bit grey: the full range onto 0..255, where Pillow's own conversion saturates."""
    values = np.asarray(image).astype(np.int64)
    if values.size and (values.min() < 0 or values.max() > 65_535):
        raise BadImageError("integer pixels beyond 16 bits have no agreed range")
    return Image.fromarray(((values * 255 + 32_767) // 65_535).astype(np.uint8))


def _reason(error: Exception) -> str:
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    return text if "0x" not in text else type(error).__name__  # no addresses in a committed file
