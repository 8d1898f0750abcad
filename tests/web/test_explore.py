"""`unitscope explore`: from a folder of pictures to the page, which fills while pictures are rendered."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from support import ROOT
from support.page import ask

import unitscope
from store import commits
from store.errors import UsageError


def _photographs(folder: Path, count: int) -> None:
    folder.mkdir()
    chance = np.random.default_rng(0)
    for number in range(count):
        Image.fromarray(chance.integers(0, 256, (64, 80, 3), np.uint8)).save(folder / f"{number}.png")


@pytest.mark.slow
def test_from_a_folder_to_a_page_that_fills(tmp_path: Path, cache: Path) -> None:
    """The page opens when the run has folded, shows pictures before their stage is complete, and ends with SIGTERM."""
    _photographs(tmp_path / "holiday", 12)
    command = [
        sys.executable, "-m", "unitscope", "explore", "python:support.plain_network:plain", "holiday",
        "--weights", "random:0", "--port", "0",
    ]  # fmt: skip
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    environment = os.environ | {"PYTHONPATH": paths, "XDG_CACHE_HOME": str(cache)}
    log = tmp_path / "log"
    with log.open("w") as said:
        process = subprocess.Popen(command, cwd=tmp_path, stderr=said, stdout=said, env=environment)
    try:
        address = _once(lambda: re.search(r"The page of \S+ (http://\S+)/", log.read_text()), process, log)[1]
        (store,) = (tmp_path / "stores").iterdir()
        run = json.loads(ask(address, "/index.json")[2])["runs"][0]
        assert run["open"]
        assert run["n"] == 12
        layer, channel = _once(lambda: _rendered(store), process, log)
        place = f"/{run['run']}/{layer}/{channel}/"
        _once(lambda: b"Feature visualization of" in ask(address, place)[2], process, log)
    finally:
        process.terminate()
        process.wait(60)
    assert "go on with: unitscope run" in log.read_text()
    assert (store / "explore.toml").read_text().count("plain_network") == 1


def _rendered(store: Path) -> tuple[str, int] | None:
    """Return a unit that has been rendered, also before its stage is complete."""
    for record in commits.records(store, stage="visualize"):
        if record.facts.get("channels"):
            return record.facts["layer"], record.facts["channels"][0]
    return None


def _once(asked: Callable[[], Any], process: subprocess.Popen[bytes], log: Path) -> Any:
    """Wait until a function's answer is true, and return it."""
    end = time.monotonic() + 240
    while time.monotonic() < end:
        found = asked()
        if found:
            return found
        assert process.poll() is None, log.read_text()
        time.sleep(0.2)
    raise AssertionError(log.read_text())


def test_what_cannot_be_explored_is_said_in_one_line(tmp_path: Path) -> None:
    for words, said in (
        (["torchvision:resnet18", str(tmp_path / "nowhere")], "give a folder of pictures"),
        (["torchvision:resnet18", str(tmp_path), "--store", str(tmp_path / "taken")], "of another model"),
    ):
        (tmp_path / "taken").mkdir(exist_ok=True)
        (tmp_path / "taken" / "explore.toml").write_text("[model]\nsource = 'other'\n")
        result = CliRunner().invoke(unitscope.cli, ["explore", *words])
        assert isinstance(result.exception, UsageError)
        assert said in str(result.exception)


def test_a_port_that_is_taken_is_said_in_one_line(tmp_path: Path) -> None:
    import socket

    from support import synthetic_store

    synthetic_store.build(tmp_path / "store")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        words = ["serve", str(tmp_path / "store"), "--port", str(taken.getsockname()[1])]
        result = CliRunner().invoke(unitscope.cli, words)
    assert isinstance(result.exception, UsageError)
    assert "choose another, or 0 for any" in str(result.exception)
