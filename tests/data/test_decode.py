"""Every kind of picture file is decoded upright, as RGB and with the right values; errors say why decoding failed."""

from __future__ import annotations

import io
import struct
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


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Turn stored pixels as the EXIF standard says: where the first row and the first column belong."""
    return {
        1: pixels,
        2: pixels[:, ::-1],
        3: pixels[::-1, ::-1],
        4: pixels[::-1],
        5: pixels.transpose(1, 0, 2),
        6: np.rot90(pixels, -1),
        7: pixels[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(pixels),
    }[orientation]


def _exif(*entries: tuple[int, int, int, bytes]) -> bytes:
    """Return an EXIF block with these entries (tag, type, count, value of up to 4 bytes or longer) as they are."""
    body, beyond = struct.pack("<H", len(entries)), b""
    for tag, kind, count, value in entries:
        inside = value.ljust(4, b"\0") if len(value) <= 4 else struct.pack("<I", 14 + 12 * len(entries) + len(beyond))
        body += struct.pack("<HHI", tag, kind, count) + inside
        beyond += value if len(value) > 4 else b""
    return b"Exif\0\0II*\0" + struct.pack("<I", 8) + body + struct.pack("<I", 0) + beyond


ODD_ENTRIES = {
    "a negative fraction with 0 below": (0x011A, 10, 1, struct.pack("<ii", -1, 0)),
    "text where a number belongs": (0x0128, 2, 4, b"two\0"),
    "a pointer beyond the block": (0x8769, 4, 1, struct.pack("<I", 2**32 - 1)),
    "a type that does not exist": (0x0110, 99, 1, b"\1"),
    "a value that the block ends before": (0x010F, 2, 1000, b"\0\0\1\0"),
}


@pytest.mark.filterwarnings("ignore:.*EXIF:UserWarning", "ignore:Tag data larger:UserWarning")  # of Pillow
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("entry", ODD_ENTRIES.values(), ids=ODD_ENTRIES)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_rotation_needs_the_orientation_alone(orientation: int, entry: tuple[int, int, int, bytes], kind: str) -> None:
    exif = _exif(entry, (0x0112, 3, 1, struct.pack("<H", orientation)))
    options: dict[str, object] = {"lossless": True} if kind == "WEBP" else {}
    stored = np.asarray(Image.open(io.BytesIO(_bytes(Image.fromarray(RGB), kind, **options))))
    data = _bytes(Image.fromarray(RGB), kind, exif=exif, **options)
    found = _array(data)
    assert (found == _upright(stored, orientation)).all()
    assert read_size(data) == found.shape[1::-1]


@pytest.mark.filterwarnings("ignore:.*EXIF:UserWarning", "ignore:Tag data larger:UserWarning")  # of Pillow
@pytest.mark.parametrize("exif", [b"Exif\0\0", b"Exif\0\0XX*\0rubbish", b"Exif\0\0II*\0\xff\xff\xff\xff", b"none"])
def test_a_broken_exif_block_rejects_no_sound_pixels(exif: bytes) -> None:
    data = _bytes(Image.fromarray(RGB), "PNG", exif=exif)
    assert (_array(data) == RGB).all()
    assert read_size(data) == (30, 20)


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_rotated_tiff_has_the_size_of_its_pixels(orientation: int, compression: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = _bytes(Image.fromarray(RGB), "TIFF", exif=exif, compression=compression)
    found = _array(data)
    assert (found == _upright(RGB, orientation)).all()
    assert read_size(data) == found.shape[1::-1]


@pytest.mark.filterwarnings("ignore:.*EXIF:UserWarning", "ignore:Tag data larger:UserWarning")  # of Pillow
def test_a_tiff_whose_exif_directory_is_broken_is_read() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x8298] = "abc"  # an entry to write the broken one over
    data = _bytes(Image.fromarray(RGB), "TIFF", exif=exif)
    entry = data.index(struct.pack("<HHI", 0x8298, 2, 4))
    data = data[:entry] + struct.pack("<HHIi", 0x8769, 9, 1, -72) + data[entry + 12 :]  # a place before the file
    assert (_array(data) == _upright(RGB, 6)).all()


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
