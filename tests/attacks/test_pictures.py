"""Pictures that run programs, never end, or are larger than memory: each is a bad picture, at once."""

from __future__ import annotations

import io
import os
import shutil
import stat
from pathlib import Path

import pytest
from PIL import Image

from pipeline.data.decode import FORMATS, SUFFIXES, BadImageError, open_image, read_size
from pipeline.data.folder import FolderSource
from store import regular_file

EPS = b"""%!PS-Adobe-3.0 EPSF-3.0
%%BoundingBox: 0 0 8 8
%%EndComments
(touched) (w) file closefile
showpage
%%EOF
"""


def _fake_ghostscript(folder: Path) -> Path:
    """A program named gs that leaves a file behind when it is called."""
    program, trace = folder / "gs", folder / "was-called"
    program.write_text(f"#!/bin/sh\ntouch {trace}\nexit 1\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return trace


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif"])
def test_postscript_runs_nothing(suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trace = _fake_ghostscript(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert shutil.which("gs") == str(tmp_path / "gs")
    file = tmp_path / f"picture{suffix}"
    file.write_bytes(EPS)
    for decode in (open_image, lambda path: read_size(path.read_bytes())):
        with pytest.raises(BadImageError, match="not a picture in a known format"):
            decode(file)
    assert not trace.exists()


def test_every_format_that_is_meant_is_read(tmp_path: Path) -> None:
    picture = Image.new("RGB", (5, 4), (10, 200, 30))
    written = set()
    for suffix in SUFFIXES:
        kind = Image.registered_extensions().get(suffix, "JPEG")
        written.add(kind)
        data = io.BytesIO()
        (picture.convert("L") if suffix == ".pgm" else picture).save(data, kind)
        assert open_image(data.getvalue()).size == (5, 4), suffix
    assert written == set(FORMATS)


@pytest.mark.parametrize("suffix", ["PCX", "TGA", "ICO", "SGI"])
def test_other_formats_of_pillow_are_no_pictures(suffix: str) -> None:
    data = io.BytesIO()
    Image.new("RGB", (16, 16)).save(data, suffix)
    with pytest.raises(BadImageError, match="not a picture in a known format"):
        open_image(data.getvalue())


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
@pytest.mark.parametrize("linked", [False, True])
def test_a_pipe_that_nobody_writes_to_is_no_picture(linked: bool, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    file = tmp_path / "picture.jpg"
    if linked:
        file.symlink_to(tmp_path / "pipe")
    else:
        (tmp_path / "pipe").rename(file)
    with pytest.raises(BadImageError, match="cannot be read: not a regular file"):
        open_image(file)


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="this system has no /dev/zero")
def test_a_device_is_no_picture(tmp_path: Path) -> None:
    (tmp_path / "picture.jpg").symlink_to("/dev/zero")
    with pytest.raises(BadImageError, match="cannot be read: not a regular file"):
        open_image(tmp_path / "picture.jpg")


def test_a_file_larger_than_any_picture_is_not_read(tmp_path: Path) -> None:
    file = tmp_path / "picture.png"
    with file.open("wb") as opened:
        opened.truncate(regular_file.MOST_BYTES + 1)  # sparse: it takes no room on the disk
    with pytest.raises(BadImageError, match=r"cannot be read: 1073741825 bytes are more than the 1073741824 allowed"):
        open_image(file)


def test_a_file_that_changes_into_a_pipe_after_it_was_listed_does_not_hang(tmp_path: Path) -> None:
    if not hasattr(os, "mkfifo"):
        pytest.skip("this system has no named pipes")
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    source = FolderSource("", str(tmp_path), "d")
    (entry,) = source.entries
    (tmp_path / "a.png").unlink()
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(OSError, match="not a regular file"):
        source.read(entry)
