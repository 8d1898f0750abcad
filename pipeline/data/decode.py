"""Decoding: from the bytes of a picture to an upright RGB picture.

It handles grey, CMYK, 16-bit grey, palette and alpha pictures, and rotation by EXIF.
"""

from __future__ import annotations

import io
import re
import struct
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, TiffImagePlugin, UnidentifiedImageError

from store import regular_file

SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".jfi", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm",
)  # fmt: skip
# Pillow's names of the formats that SUFFIXES are of. It knows others: for EPS it would run Ghostscript.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
MOST_PIXELS = 178_956_970  # Pillow warns above half of this and raises above it; half of it is the limit here

_ORIENTATION, _WIDTH, _HEIGHT = 0x0112, 0x0100, 0x0101  # tags of EXIF and TIFF
_UPRIGHT = {  # what makes a picture upright that has this EXIF orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class BadImageError(Exception):
    """A file cannot be decoded as a picture. The text is the reason, which is stored in `images.reason`."""


def read_size(data: bytes) -> tuple[int, int]:
    """Read the width and height in pixels, after EXIF rotation, from the header alone. Raises BadImageError."""
    image = _open(data)
    width, height = image.size
    if isinstance(image, TiffImagePlugin.TiffImageFile):  # some versions of Pillow have turned its size already
        width, height = image.tag_v2[_WIDTH], image.tag_v2[_HEIGHT]
    return (height, width) if _orientation(image) in (5, 6, 7, 8) else (width, height)


def open_image(source: bytes | Path | str) -> Image.Image:
    """Decode a picture to mode RGB, upright, with transparent parts on white. Raises BadImageError with the reason."""
    image = _open(source if isinstance(source, bytes) else _read(Path(source)))
    try:
        if isinstance(image, TiffImagePlugin.TiffImageFile):
            _forget_all_but_orientation(image)
        image.load()
        # ImageOps.exif_transpose writes the EXIF block anew, which fails if any other entry of it is odd.
        turn = _UPRIGHT.get(_orientation(image))
        return _to_rgb(image if turn is None else image.transpose(turn))
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
        return regular_file.read(path)
    except OSError as error:
        raise BadImageError(f"cannot be read: {error.strerror}") from error


def _open(data: bytes) -> Image.Image:
    if not data:
        raise BadImageError("empty file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # checked below, in every thread
            image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        raise BadImageError("not a picture in a known format") from None
    except Exception as error:
        raise BadImageError(_reason(error)) from error
    if image.width * image.height > MOST_PIXELS // 2:
        raise BadImageError(f"{image.width} x {image.height} pixels are more than the {MOST_PIXELS // 2} allowed")
    return image


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, or 1 (upright) if nothing tells another.

    Pillow stops reading an EXIF block at the first entry that it cannot read. Then the orientation alone is searched.
    """
    try:
        exif = image.getexif()
        if _ORIENTATION in exif:
            return int(exif[_ORIENTATION])
    except Exception:  # SyntaxError, struct.error, ...: a broken EXIF block does not make the pixels unusable
        pass
    block = image.info.get("exif")
    return _orientation_in(block) if isinstance(block, bytes) else 1


def _orientation_in(block: bytes) -> int:
    """Return the orientation that the first directory of an EXIF block holds as one SHORT, or 1 if it holds none."""
    tiff = re.sub(b"^(Exif\0\0){1,2}", b"", block)
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    try:
        if order is None:
            return 1
        (start,) = struct.unpack_from(f"{order}I", tiff, 4)
        (count,) = struct.unpack_from(f"{order}H", tiff, start)
        for entry in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind, values, value = struct.unpack_from(f"{order}HHIH", tiff, entry)
            if (tag, kind, values) == (_ORIENTATION, 3, 1):
                return int(value)
    except struct.error:  # the block ends before its directory does
        pass
    return 1


def _forget_all_but_orientation(image: TiffImagePlugin.TiffImageFile) -> None:
    """Drop the other EXIF entries of a TIFF. Pillow reads the blocks they point to while it loads the pixels."""
    try:
        exif = image.getexif()
        for tag in [tag for tag in exif if tag != _ORIENTATION]:
            del exif[tag]
    except Exception:  # a broken EXIF block: `load` says whether the pixels can be read all the same
        return


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
