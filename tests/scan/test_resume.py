"""Killed at any moment and run again, the store is byte for byte what an undisturbed run gives."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner
from support import ROOT, faults

from unitscope import cli, main

CONFIG = """
[model]
source = "python:support.plain_network:plain"
[dataset]
source = "package:demo"
limit = 24
[scan]
batch_size = 4
shard_size = 4
[examples]
count = 3
[visualize]
units_per_layer = 4
size = 64
steps = 24
batch = 2
shard_size = 2
"""


def _start(config: Path, store: Path, *more: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "unitscope", "run", str(config), "--store", str(store), *more]
    return subprocess.Popen(command, cwd=ROOT, env=faults.environment(), stderr=subprocess.PIPE)


def _finish(config: Path, store: Path, *more: str) -> None:
    """Run the command to its end in this process, which has imported what it needs."""
    done = CliRunner().invoke(cli, ["run", str(config), "--store", str(store), *more], catch_exceptions=False)
    assert done.exit_code == 0, done.output[-2000:]


def _kill_in(stage: str, config: Path, store: Path, after: int = 1) -> None:
    """Kills the run as soon as `after` shards of a stage are committed, which leaves it in the middle of the next."""
    process = _start(config, store)
    deadline = time.monotonic() + 120
    try:
        while len(list(store.glob(f"commits/*/{stage}/[!.]*.json"))) < after:
            assert process.poll() is None, f"ended before it could be killed in {stage}"
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert process.returncode == -signal.SIGKILL


def digests(store: Path) -> dict[str, str]:
    return {
        str(path.relative_to(store)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(store.rglob("*"))
        if path.is_file() and path.relative_to(store).parts[0] != "logs"
    }


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("resume") / "resume.toml"
    path.write_text(CONFIG)
    return path


@pytest.fixture(scope="module")
def undisturbed(config: Path) -> dict[str, str]:
    store = config.parent / "undisturbed"
    _finish(config, store)
    return digests(store)


def test_killed_in_scan_fold_and_visualize(config: Path, undisturbed: dict[str, str]) -> None:
    store = config.parent / "killed"
    _kill_in("scan", config, store, after=2)
    assert digests(store) != undisturbed
    _kill_in("fold", config, store)
    _kill_in("connections", config, store)
    _kill_in("visualize", config, store)
    assert digests(store) != undisturbed
    _finish(config, store)
    assert digests(store) == undisturbed
    done = CliRunner().invoke(cli, ["verify", str(store)])
    assert done.exit_code == 0, done.output
    assert "every one as it was committed" in done.stdout


@pytest.mark.slow  # tests/cluster runs shares under Slurm, and worker processes
def test_shares_and_processes_give_the_same_bytes(config: Path, undisturbed: dict[str, str]) -> None:
    """Two shares of the scan run at once, as under Slurm; two worker processes do the rest."""
    store = config.parent / "shared"
    _finish(config, store, "--stage", "index", "--stage", "calibrate")
    halves = [_start(config, store, "--stage", "scan", "--shard", f"{i}/2") for i in range(2)]
    said = [half.communicate()[1] for half in halves]
    assert [half.returncode for half in halves] == [0, 0], [text[-500:] for text in said]
    _finish(config, store, "--workers", "2")
    assert digests(store) == undisturbed


def test_a_share_before_its_stage_is_refused(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["run", str(config), "--store", str(tmp_path / "store"), "--stage", "fold", "--shard", "0/2"]
    monkeypatch.setattr(sys, "argv", ["unitscope", *words])
    with pytest.raises(SystemExit) as stop:
        main()
    said = capfd.readouterr().err
    assert stop.value.code == 2
    assert "stage index" in said
    assert said.count("\n") == 1


def test_leftovers_of_dead_processes_go_and_of_living_ones_stay(tmp_path: Path) -> None:
    from store import housekeeping, intents, publish

    dead = subprocess.Popen(["true"])
    dead.wait()
    folder = tmp_path / "runs"
    folder.mkdir()
    for process in (dead.pid, os.getpid()):
        (folder / f"{publish.TEMPORARY}{intents.host()}~{process}~00~x.h5").write_text("half")
    housekeeping.remove_stale_temporaries(tmp_path)
    assert [p.name.split("~")[1] for p in folder.iterdir()] == [str(os.getpid())]


def test_a_shard_that_another_process_finished_meanwhile_is_done(config: Path, tmp_path: Path) -> None:
    """The other may have taken the partials away already: a failure then is no failure."""
    from dataclasses import replace

    from pipeline import driver
    from pipeline.config import read_config
    from pipeline.executors import worker
    from pipeline.job import Job, Shard
    from pipeline.stages import index, scan
    from store.errors import UsageError

    job = Job(read_config(config), tmp_path / "store", progress=False)
    driver.run(job, ("index",))

    def fail(*_: object) -> None:
        raise UsageError("a partial is gone")

    worker.run_shard(job, replace(index.STAGE, run=fail), Shard("index"), lambda _: None)
    with pytest.raises(UsageError, match="partial is gone"):
        worker.run_shard(job, replace(scan.STAGE, run=fail), Shard("00000"), lambda _: None)
    assert job.store.record("index", "index") is not None
