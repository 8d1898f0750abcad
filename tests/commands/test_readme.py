"""Every command and every piece of Python in the README runs, in the folder it assumes."""

from __future__ import annotations

import re
import shlex
import shutil
import sys
import tomllib
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from support import ROOT, rehearsals

import unitscope

README = (ROOT / "README.md").read_text()


def _blocks(kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


COMMANDS = [line for block in _blocks("bash") for line in block.splitlines() if line.strip()]


@pytest.fixture(scope="module")
def place(workplace: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the folder the README assumes, since its commands write."""
    folder = tmp_path_factory.mktemp("readme")
    shutil.copytree(workplace, folder, dirs_exist_ok=True)
    shutil.copytree(ROOT / "docs", folder / "docs")
    return folder


def test_the_two_set_up_commands_are_makefile_targets() -> None:
    made = [line.split()[1] for line in COMMANDS if line.startswith("make ")]
    assert made == ["demo", "test"]
    makefile = (ROOT / "Makefile").read_text()
    assert all(re.search(rf"^{target}: ", makefile, re.MULTILINE) for target in made)


def _serves(line: str) -> bool:
    """Whether a command runs until it is stopped: tests/web runs these."""
    return shlex.split(line)[1] in ("serve", "explore")


@pytest.mark.parametrize("line", [line for line in COMMANDS if not line.startswith("make ") and _serves(line)])
def test_command_that_serves_has_arguments_that_it_takes(line: str) -> None:
    _, name, *words = shlex.split(line)
    command = unitscope.cli.get_command(click.Context(unitscope.cli), name)
    assert command is not None
    assert command.make_context(name, words).params["browser"]


@pytest.mark.parametrize("line", [line for line in COMMANDS if not line.startswith("make ") and not _serves(line)])
def test_command(line: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    rehearsals.shorten(monkeypatch)  # of `plan`
    words = shlex.split(line)
    assert words[0] == "unitscope"
    done = CliRunner().invoke(unitscope.cli, words[1:], catch_exceptions=False)
    assert done.exit_code == 0
    if words[1] != "run":
        assert done.stdout.strip()
    for option in ("--save", "--output"):
        if option in words:
            assert (place / words[words.index(option) + 1]).stat().st_size > 1000


@pytest.mark.parametrize("code", _blocks("python"), ids=lambda code: code.split("\n", 1)[0])
def test_python(code: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(place)
    before = set(sys.modules)
    exec(compile(code, "README.md", "exec"), {})
    assert capsys.readouterr().out.count("\n") >= 5
    if "import unitscope" not in code:
        assert not {"query", "store", "pipeline"} & (set(sys.modules) - before), "plain files need none of us"


def test_the_toml_is_a_config() -> None:
    from pipeline.config import parse_config

    (text,) = _blocks("toml")
    assert parse_config(tomllib.loads(text), "README").model.source == "torchvision:resnet50"
