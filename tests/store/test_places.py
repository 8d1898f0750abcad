"""A store works in any folder, or is refused before it is filled; no file system needs locks."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from support import synthetic_store
from support.faults import environment

import query
from store import export, hdf5, publish
from store.errors import UsageError
from unitscope import cli

NETWORK = """
from torch import nn
def make():
    net = nn.Sequential(nn.Conv2d(3, 4, 3, stride=4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    return net, {"height": 32, "width": 32}
"""
CONFIG = """
[model]
source = "python:tiny_for_places:make"
weights = "random:0"
[dataset]
source = "package:demo"
limit = 3
"""
STAGES = [word for stage in ("index", "calibrate", "scan", "fold") for word in ("--stage", stage)]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "tiny_for_places.py").write_text(NETWORK)
    (tmp_path / "c.toml").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "tiny_for_places", raising=False)
    return tmp_path


@pytest.mark.parametrize(
    "folder",
    ["b{1,2}", 'it\'s "so" 100% $x; --y', "back\\slash ]~", "new\nline/ünï", "s [v1]", "a*b", "q?x", "[!a]/**"],
)
def test_odd_folders_work(here: Path, folder: str) -> None:
    done = CliRunner().invoke(cli, ["run", "c.toml", "--store", folder, *STAGES], catch_exceptions=False)
    assert done.exit_code == 0
    for sibling in ("s v", "s 1", "aXb", "qZx", "x/y"):  # what such a folder would match as a pattern
        if not (here / sibling).exists():
            shutil.copytree(here / folder, here / sibling)
    with query.open(here / folder) as scope:
        assert scope.sql("SELECT count(*) FROM units").fetchone() == (7,)


GLOBS = ["s\\ [v1]", "a*\\b", "\\q?x"]


@pytest.mark.parametrize(
    ("command", "folder"),
    [*(("run", folder) for folder in [*GLOBS, os.fsdecode(b"latin-\xe9")]), *(("slurm", folder) for folder in GLOBS)],
)
def test_a_folder_that_duckdb_cannot_read_is_refused_before_it_is_filled(
    here: Path, folder: str, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.slurm.queue.queued", dict)
    with pytest.raises(UsageError, match="move the store elsewhere") as refused:
        CliRunner().invoke(cli, [command, "c.toml", "--store", folder], catch_exceptions=False)
    assert not (here / folder).exists()
    (here / folder).mkdir(parents=True)
    publish.replace_text(here / folder / "manifest.json", publish.manifest_text([]))  # a store of an older version
    with pytest.raises(UsageError) as asked:
        query.open(here / folder)
    assert str(asked.value) == str(refused.value)
    assert "\n" not in str(asked.value)
    str(asked.value).encode()


def test_an_export_into_such_a_folder_is_refused(tmp_path: Path) -> None:
    made = synthetic_store.build(tmp_path / "store")
    with pytest.raises(UsageError, match="move the store elsewhere"):
        export.export(made.root, made.run, tmp_path / "to\\ [v2]")
    assert not (tmp_path / "to\\ [v2]").exists()


def test_hdf5_files_are_made_without_flock(tmp_path: Path) -> None:
    """`flock` fails, as on NFS without its lock service. HDF5 locks a file that it creates unless it is told not to."""
    source = tmp_path / "n.c"
    source.write_text("#include <errno.h>\nint flock(int f, int o) { errno = ENOLCK; return -1; }\n")
    library = tmp_path / "n.so"
    try:
        subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this machine has no C compiler")
    code = (
        "import sys, numpy; from pathlib import Path; from store import hdf5; "
        "hdf5.write(Path(sys.argv[1]), {'a': hdf5.Array(numpy.arange(3))})"
    )
    preload = environment() | {"LD_PRELOAD": str(library)}
    preload.pop("HDF5_USE_FILE_LOCKING", None)
    command = [sys.executable, "-c", code, str(tmp_path / "a.h5")]
    done = subprocess.run(command, env=preload, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert np.array_equal(hdf5.read(tmp_path / "a.h5", "a"), np.arange(3))
