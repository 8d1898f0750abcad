"""Attacks on the page: other hosts, traversal, uploads that are no pictures, floods. It answers, and stays up."""

from __future__ import annotations

import concurrent.futures
import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from support import synthetic_store
from support.page import ask, serving

RUN = "toy@shapes"
TRAVERSALS = [
    "..", "../..", "../../../../etc/passwd", "/etc/passwd", "....//....//etc/passwd", "..\\..\\windows", "%2e%2e",
    "%2e%2e%2f%2e%2e%2fetc%2fpasswd", "\0", "a\0b", "file:///etc/passwd", "CON", "-", ".", "~root", "$HOME", "*", "?",
    "' OR 1=1 --", "'; DROP TABLE units; --", "<script>alert(1)</script>",
    "{{7*7}}", "{% raw %}", "\r\nSet-Cookie: a=b",
    "9" * 400, "-1", "1e9", "٣", "nan", "\ud83d\ude00".encode("utf-16", "surrogatepass").decode("utf-16"), "a" * 3000,
]  # fmt: skip
PLACES = [
    "/{}/", "/{run}/{}/", "/{run}/stem.relu/{}/", "/{run}/-/image/{}/", "/{run}/-/class/{}/", "/{run}/-/drop/{}/",
    "/{run}/-/photograph/{}.jpg", "/{run}/-/map/{}/stem.relu/0.png", "/{run}/-/map/0/{}/0.png",
    "/{run}/-/map/0/stem.relu/{}.png", "/{run}/stem.relu/-/tiles/{}.jpg", "/{run}/stem.relu/0/-/maps/{}.png",
    "/{run}/stem.relu/0/-/visualization/{}.webp", "/{run}/{}/-/peek/", "/-/static/x/{}", "/-/api/{}/index.json",
    "/-/search/?q={}", "/-/search/?run={}", "/{run}/?layer={}", "/{run}/?open={}", "/{run}/stem.relu/?sort={}",
    "/{run}/stem.relu/?show={}", "/{run}/stem.relu/?class={}", "/{run}/stem.relu/?image={}",
    "/{run}/stem.relu/0/?from={}&to={}", "/{run}/-/image/0/?layer={}",
    "/{run}/-/image/0/?layer=stem.relu&across={}&down=1",
    "/-/api/top_units/index.json?image={}", "/-/api/top_images/index.json?unit={}", "/-/api/top_images/index.json?k={}",
    "/-/api/separating_units/index.json?images_a={}&images_b=1", "/-/api/units_for_class/index.json?label={}",
]  # fmt: skip


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("page")
    synthetic_store.build(folder / "store")
    with serving(folder / "store", folder / "cache") as opened:
        yield opened
        assert ask(opened, "/")[0] == 200  # after everything it still answers


@pytest.mark.parametrize("place", PLACES)
def test_what_is_no_name_reads_nothing_and_breaks_nothing(address: str, place: str) -> None:
    for text in TRAVERSALS:
        for written in {quote(text, safe=""), quote(text, safe="/%")}:
            path = place.replace("{run}", RUN).replace("{}", written)
            status, headers, body = ask(address, path)
            assert status in (200, 303, 307, 400, 404, 414), (path, status, body[:200])
            assert b"root:" not in body
            assert headers["x-content-type-options"] == "nosniff"
            assert b"<script>alert" not in body or headers["content-type"] == "application/json"
            assert b"Traceback" not in body
            assert "set-cookie" not in headers


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "evil.example:80",
        "",
        "[::1",
        "a b",
        "@127.0.0.1",
    ],
)
def test_other_hosts_are_refused(address: str, host: str) -> None:
    assert ask(address, "/", headers={"Host": host})[0] in (400, 421)


def test_own_hosts_are_answered(address: str) -> None:
    port = address.rpartition(":")[2]
    for host in (f"127.0.0.1:{port}", f"localhost:{port}", "localhost", f"[::1]:{port}"):
        assert ask(address, "/", headers={"Host": host})[0] == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
def test_forms_of_other_sites_are_refused(address: str, headers: dict[str, str]) -> None:
    assert ask(address, f"/{RUN}/-/drop/", "POST", b"x", headers)[0] == 403


def test_only_reading_and_dropping_are_possible(address: str) -> None:
    for method in ("PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT"):
        assert ask(address, "/", method)[0] in (400, 405)
    assert ask(address, f"/{RUN}/", "POST", b"x")[0] == 405


def test_floods_of_headers_and_queries_are_refused(address: str) -> None:
    assert ask(address, "/-/search/?q=" + "a" * 20_000)[0] == 414
    port = int(address.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(
            b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n" + b"".join(b"X-%d: a\r\n" % i for i in range(5000)) + b"\r\n"
        )
        assert connection.recv(4096).split(b" ")[1:2] in ([b"400"], [b"431"], [b"200"], [])
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX: " + b"a" * (1 << 20))
        with contextlib.suppress(ConnectionResetError):
            assert connection.recv(4096).split(b" ")[1:2] in ([b"400"], [b"431"], [])


def test_slow_visitors_do_not_keep_others_out(address: str) -> None:
    """A hundred connections that send half a request, and others that never read, while a reader is answered."""
    port = int(address.rpartition(":")[2])
    slow = [socket.create_connection(("127.0.0.1", port), timeout=30) for _ in range(100)]
    try:
        for number, connection in enumerate(slow):
            half = (
                b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n"
                if number % 2
                else b"POST /toy@shapes/-/drop/ HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000\r\n\r\nabc"
            )
            connection.sendall(half)
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            statuses = list(pool.map(lambda _: ask(address, f"/{RUN}/stem.relu/")[0], range(24)))
        assert statuses == [200] * 24
    finally:
        for connection in slow:
            connection.close()


def test_names_in_a_store_are_text_on_the_page(tmp_path: Path) -> None:
    """Labels, paths and class names that are scripts are shown, not run."""
    from unittest import mock

    evil = '<img src=x onerror="alert(1)">"\'&'
    with mock.patch.object(synthetic_store, "LABELS", (evil, "light{{7*7}}house", evil)):
        synthetic_store.build(tmp_path / "store")
    with serving(tmp_path / "store", tmp_path / "cache") as address:
        for path in (
            "/",
            f"/{RUN}/-/image/0/",
            f"/{RUN}/-/class/134/",
            f"/{RUN}/-/class/437/",
            f"/{RUN}/stem.relu/0/",
            "/-/search/?q=img",
        ):
            status, headers, body = ask(address, path)
            assert status == 200
            assert b"<img src=x" not in body
            assert b"light49house" not in body
            assert "script-src 'self'" in headers["content-security-policy"]
        assert b"&lt;img src=x" in ask(address, f"/{RUN}/-/class/134/")[2]
