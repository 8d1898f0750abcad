"""Uploads that are no pictures, and pictures that are bombs, are refused in one sentence."""

from __future__ import annotations

import io
import json
import socket
import struct
import zlib

import pytest
from PIL import Image
from support.page import ask
from web.conftest import DemoPage


def _png(width: int, height: int) -> bytes:
    """A PNG that says it is so large, and holds one row."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")
    )


def _jpeg() -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (40, 30), (200, 30, 60)).save(out, "JPEG")
    return out.getvalue()


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n"
NO_PICTURES = {
    "empty": b"",
    "text": b"no picture",
    "a bomb": _png(60_000, 60_000),
    "many pixels": _png(9_000, 9_000),
    "cut off": _jpeg()[:200],
    "eps": EPS,
    "bytes": b"\xff" * 1000,
    "svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
}


@pytest.mark.parametrize("name", NO_PICTURES)
def test_what_is_no_picture_is_refused_in_a_sentence(demo_page: DemoPage, name: str) -> None:
    status, _, said = ask(demo_page.address, f"/{demo_page.run}/-/drop/", "POST", NO_PICTURES[name])
    assert status == 415, said
    assert b"drop a JPEG, PNG, WebP, GIF, BMP or TIFF picture" in said


@pytest.mark.parametrize("kind", ["", "; boundary=x", "; boundary=" + "x" * 4000, "; boundary=\x01"])
def test_a_broken_form_is_refused(demo_page: DemoPage, kind: str) -> None:
    headers = {"Content-Type": f"multipart/form-data{kind}"}
    assert ask(demo_page.address, f"/{demo_page.run}/-/drop/", "POST", b"--x\r\nbroken", headers)[0] == 400


def test_a_form_with_a_picture_and_a_bare_picture_get_the_same_page(demo_page: DemoPage) -> None:
    """As a browser without JavaScript sends it, and as the page's script does. The second time nothing is measured."""
    picture = _jpeg()
    form = (
        b'--x\r\nContent-Disposition: form-data; name="picture"; filename="../../a.jpg"\r\n\r\n'
        + picture
        + b"\r\n--x--\r\n"
    )
    address = f"/{demo_page.run}/-/drop/"
    sent = ask(demo_page.address, address, "POST", form, {"Content-Type": "multipart/form-data; boundary=x"})
    bare = ask(demo_page.address, address, "POST", picture)
    assert sent[0] == bare[0] == 303
    assert sent[1]["location"] == bare[1]["location"]
    page = json.loads(ask(demo_page.address, f"{sent[1]['location']}index.json")[2])
    assert page["page"] == "drop"
    assert len(page["panels"]["predictions"]["rows"]) == 5


def test_an_upload_that_is_too_large_is_not_read(demo_page: DemoPage) -> None:
    address, run = demo_page.address, demo_page.run
    with socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2])), timeout=30) as connection:
        head = f"POST /{run}/-/drop/ HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {1 << 40}\r\n\r\n"
        connection.sendall(head.encode())
        assert b" 413 " in connection.recv(4096)
    with socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2])), timeout=30) as connection:
        connection.sendall(
            f"POST /{run}/-/drop/ HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
        )
        piece = b"%x\r\n%s\r\n" % (1 << 20, b"\0" * (1 << 20))
        answer = b""
        try:
            for _ in range(80):
                connection.sendall(piece)
        except OSError:
            pass  # it has hung up
        try:
            answer = connection.recv(4096)
        except OSError:
            answer = b" 413 "
        assert b" 413 " in answer or not answer
