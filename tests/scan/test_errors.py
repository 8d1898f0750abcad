"""Bad usage and bad input: one line on standard error that names the thing and what to do, exit 2, no traceback."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support import ROOT

import unitscope
from store import commits

MODEL = '[model]\nsource = "timm:tf_efficientnet_lite0"\nweights = "random:0"\n'


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, demo_store: Path) -> Path:
    path = tmp_path_factory.mktemp("errors")
    (path / "empty").mkdir()
    (path / "empty" / "notes.txt").write_text("no picture")
    (path / "broken").mkdir()
    (path / "broken" / "a.jpg").write_bytes(b"\xff\xd8\xff but no picture")
    configs = {
        "key": MODEL + '[dataset]\nsource = "package:demo"\n[scan]\ntopkk = 3\n',
        "folder": MODEL + '[dataset]\nsource = "folder:nowhere"\n',
        "empty": MODEL + '[dataset]\nsource = "folder:empty"\n',
        "broken": MODEL + '[dataset]\nsource = "folder:broken"\n',
        "glob": MODEL + 'layers = ["blocks.9.*"]\n[dataset]\nsource = "package:demo"\n',
        "module": MODEL + 'layers = ["blocks.3."]\n[dataset]\nsource = "package:demo"\n',
        "pictures": MODEL + '[dataset]\nsource = "package:demo"\n[visualize]\nlayers = ["blocks.9.*"]\n',
        "weights": MODEL.replace("random:0", "missing.pth") + '[dataset]\nsource = "package:demo"\n',
        "good": MODEL + '[dataset]\nsource = "package:demo"\n',
    }
    for name, text in configs.items():
        (path / f"{name}.toml").write_text(text)
    old = path / "old"
    shutil.copytree(demo_store / "commits", old / "commits")
    (old / "manifest.json").write_text(commits.sealed({"format": 99, "records": []}))
    return path


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "key.toml"], ["key.toml", "topkk", "did you mean topk"]),
        (["run", "none.toml"], ["none.toml", "does not exist"]),
        (["run", "folder.toml"], ["nowhere", "does not exist"]),
        (["run", "empty.toml"], ["empty", "holds no pictures"]),
        (["run", "broken.toml"], ["a.jpg", "max_bad_fraction"]),
        (["run", "glob.toml"], ["blocks.9.*"]),
        (["run", "module.toml"], ["blocks.3.", "did you mean blocks."]),
        (["run", "pictures.toml"], ["[visualize] layers", "blocks.9.*"]),
        (["run", "weights.toml"], ["missing.pth"]),
        (["run", "good.toml", "--store", "old"], ["old", "format 99", "format 1"]),
        (["run", "good.toml", "--store", "empty"], ["empty", "--store"]),
        (["run", "good.toml", "--shard", "0/2"], ["--shard", "--stage"]),
        (["run", "good.toml", "--stage", "scan", "--shard", "2/2"], ["2/2", "I/N"]),
        (["run", "good.toml", "--stage", "scna"], ["scna", "scan"]),
        (["verify", "nowhere"], ["nowhere", "does not exist"]),
        (["verify", "old"], ["format 99"]),
        (["sql", "old", "SELECT 1"], ["format 99"]),
        (["status", "empty"], ["no unitscope store"]),
        (["layers", "torchvision:resnt50"], ["resnt50", "resnet50"]),
        (["layers", "resnet50"], ["torchvision:NAME"]),
        (["rnu", "good.toml"], ["rnu", "run"]),
        (["top-units", "nowhere", "0"], ["nowhere"]),
    ],
    ids=lambda value: " ".join(value) if len(value) else "",
)
def test_one_line_and_exit_2(
    folder: Path, arguments: list[str], said: list[str], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["unitscope", *arguments])
    with pytest.raises(SystemExit) as stop:
        unitscope.main()
    out, error = capsys.readouterr()
    assert stop.value.code == 2, error
    assert out == ""
    _check(error, said)


def test_the_same_in_a_process_of_its_own(folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "unitscope", "run", "empty.toml"],
        capture_output=True, text=True, cwd=folder, check=False, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    _check(done.stderr, ["holds no pictures"])


def _check(error: str, said: list[str]) -> None:
    lines = [line for line in error.replace("\r", "\n").splitlines() if line.startswith("unitscope: ")]
    assert len(lines) == 1, error
    assert "Traceback" not in error
    for word in said:
        assert word in lines[0]
