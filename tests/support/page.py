"""The page in tests: `unitscope serve` as a process, and Debian's Chromium."""

from __future__ import annotations

import http.client
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from support import ROOT

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

# As root in a container, and without what Chromium asks the network for by itself.
ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip


@contextmanager
def serving(store: Path, cache: Path, *options: str) -> Iterator[str]:
    """Serve a store by the command, on any free port. Yields the address without the last slash."""
    command = [sys.executable, "-m", "unitscope", "serve", str(store), "--port", "0", *options]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(cache)}
    with (
        tempfile.NamedTemporaryFile("w+") as said,  # a pipe that nobody reads would stop the server
        subprocess.Popen(command, stderr=said, text=True, env=environment) as process,
    ):
        try:
            address = None
            while address is None:
                assert process.poll() is None, Path(said.name).read_text()
                address = re.search(r"http://\S+(?=/)", Path(said.name).read_text())
                time.sleep(0.05)
            yield address[0]
            assert "Traceback" not in (log := Path(said.name).read_text()), log
        finally:
            process.terminate()
            process.wait()


@contextmanager
def chromium() -> Iterator[Browser]:
    """Start the browser, or skip the test where there is none."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        pytest.skip("there is no Chromium on this machine")
    playwright.expect.set_options(timeout=30_000)  # milliseconds: a machine that runs other tests besides is slow
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=ARGUMENTS)
        try:
            yield browser
        finally:
            browser.close()


TIMEOUT = 60.0  # seconds for one answer: the model may have to be opened for it


class Watched:
    """A page of the browser whose console must stay empty."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.said: list[str] = []
        page.on("console", lambda message: self.said.append(message.text))
        page.on("pageerror", lambda error: self.said.append(str(error)))

    def check(self) -> None:
        assert not self.said, self.said

    def tab_to(self, selector: str, most: int = 80) -> None:
        """Press Tab until an element has the focus that matches the selector."""
        for _ in range(most):
            self.page.keyboard.press("Tab")
            if self.page.evaluate("selector => document.activeElement.matches(selector)", selector):
                return
        raise AssertionError(f"the Tab key never reaches {selector}")


def ask(
    address: str, path: str, method: str = "GET", body: bytes = b"", headers: dict[str, str] | None = None
) -> tuple[int, dict[str, str], bytes]:
    """Send one request without the niceties of a client library. Returns status, headers and body."""
    connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=TIMEOUT)
    try:
        connection.request(method, path, body or None, headers or {})
        answer = connection.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
    finally:
        connection.close()


def serious(page: Page) -> list[Any]:
    """Return axe-core's findings that it calls serious or critical, as `rule: element`."""
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page).response["violations"]
    return [
        f"{one['id']}: {node['html'][:120]}"
        for one in found
        if one["impact"] in ("serious", "critical")
        for node in one["nodes"]
    ]
