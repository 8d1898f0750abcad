"""Every kind of picture file is decoded upright, as RGB and with the right values; errors say why decoding failed."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.data.decode import BadImageError, open_image, read_size

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (20, 30, 3), dtype=np.uint8)


def _bytes(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _array(data: bytes) -> np.ndarray:
    image = open_image(data)
    assert image.mode == "RGB"
    return np.asarray(image)


def test_rgb_is_exact() -> None:
    assert (_array(_bytes(Image.fromarray(RGB), "PNG")) == RGB).all()


def test_grey_is_repeated() -> None:
    found = _array(_bytes(Image.fromarray(RGB[..., 0]), "PNG"))
    assert (found == RGB[..., :1]).all()


def test_16_bit_grey_keeps_its_range_where_convert_saturates() -> None:
    values = np.linspace(0, 65_535, 600).astype(np.uint16).reshape(20, 30)
    data = _bytes(Image.fromarray(values), "PNG")
    found = _array(data)[..., 0]
    assert (np.abs(found.astype(float) - values / 257) <= 0.51).all()
    assert len(np.unique(found)) > 200, "not saturated"


def test_cmyk_inks() -> None:
    inks = np.zeros((16, 16, 4), np.uint8)
    inks[..., 1] = inks[..., 2] = 255  # magenta and yellow: red
    found = _array(_bytes(Image.fromarray(inks, "CMYK"), "JPEG", quality=95))
    assert (np.abs(found.astype(int) - [255, 0, 0]).max(axis=(0, 1)) < 12).all()


def test_palette() -> None:
    image = Image.fromarray(RGB).quantize(16)
    assert (_array(_bytes(image, "PNG")) == np.asarray(image.convert("RGB"))).all()


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_parts_lie_on_white(mode: str) -> None:
    image = Image.fromarray(np.dstack([RGB, np.zeros((20, 30), np.uint8)]), "RGBA")
    if mode == "P":
        palette = Image.new("P", (30, 20), 0)
        palette.putpalette([10, 20, 30] * 256)
        data = _bytes(palette, "PNG", transparency=0)
    else:
        data = _bytes(image.convert(mode), "PNG")
    assert (_array(data) == 255).all()


def test_exif_rotation_in_pixels_and_in_the_header() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn 90 degrees clockwise to see it upright
    data = _bytes(Image.fromarray(RGB), "PNG", exif=exif)
    assert (_array(data) == np.rot90(RGB, -1)).all()
    assert read_size(data) == (20, 30)


def test_a_png_named_jpeg_is_a_png(tmp_path: Path) -> None:
    file = tmp_path / "n02105855_2933.JPEG"
    file.write_bytes(_bytes(Image.fromarray(RGB), "PNG"))
    assert (np.asarray(open_image(file)) == RGB).all()


def test_truncated_is_refused_with_a_reason() -> None:
    data = _bytes(Image.fromarray(np.tile(RGB, (10, 10, 1))), "JPEG")
    assert read_size(data) == (300, 200), "the header still reads"
    with pytest.raises(BadImageError, match=r"truncated|broken"):
        open_image(data[: len(data) // 2])


@pytest.mark.parametrize("data", [b"", b"no picture at all", b"\xff\xd8\xff\xe0"])
def test_not_a_picture(data: bytes) -> None:
    with pytest.raises(BadImageError):
        open_image(data)


def test_a_bomb_is_an_error_and_not_a_warning() -> None:
    image = Image.new("1", (12_000, 12_000))
    with pytest.raises(BadImageError, match="pixels"):
        open_image(_bytes(image, "PNG"))


def test_float_pixels_are_refused() -> None:
    with pytest.raises(BadImageError, match="floating"):
        open_image(_bytes(Image.fromarray(RGB[..., 0].astype(np.float32)), "TIFF"))
