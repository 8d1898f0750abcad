"""A seeded sample of the torture suite, and five planted bugs that it must notice. `make torture` tries everything."""

from __future__ import annotations

import subprocess
import sys

import pytest
from support import ROOT
from support.faults import environment
from support.torture.injector import compiled

pytestmark = pytest.mark.skipif(compiled() is None, reason="no C compiler, or no preloading on this system")
KINDS = 20  # at least


def _run(module: str, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", module, *words]
    return subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)


def test_a_sample_of_every_kind_survives() -> None:
    done = _run("support.torture", "--sample", "2", "--seed", "13", "--processes", "1")
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [line.rsplit(maxsplit=2) for line in done.stdout.splitlines()[1:-1]]
    assert len(rows) >= KINDS
    assert all(tried == survived for _, tried, survived in rows)
    assert sum(int(tried) > 0 for _, tried, _ in rows) >= KINDS - 1, "where tmpfs cannot be mounted, one is not tried"


def test_planted_bugs_are_noticed() -> None:
    done = _run("support.torture.planted")
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert done.stdout.count("\n") == 5
    assert "NOT NOTICED" not in done.stdout
