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


@pytest.fixture(scope="module")
def said() -> tuple[str, str]:
    """Return the table of the sample, and the lines about the planted bugs. One process does both."""
    words = ("--sample", "2", "--seed", "13", "--processes", "1", "--planted")
    command = [sys.executable, "-m", "support.torture", *words]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    table, bugs = done.stdout.split("\n\n")
    return table, bugs


def test_a_sample_of_every_kind_survives(said: tuple[str, str]) -> None:
    rows = [line.rsplit(maxsplit=2) for line in said[0].splitlines()[1:-1]]
    assert len(rows) >= KINDS
    assert all(tried == survived for _, tried, survived in rows)
    assert sum(int(tried) > 0 for _, tried, _ in rows) >= KINDS - 1, "where tmpfs cannot be mounted, one is not tried"


def test_planted_bugs_are_noticed(said: tuple[str, str]) -> None:
    assert said[1].count("\n") == 5
    assert "NOT NOTICED" not in said[1]
