"""Test which jobs a store still needs and how their scripts are written. Neither needs Slurm."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

import unitscope
from pipeline.config import read_config
from pipeline.job import Job
from pipeline.slurm import chain, queue, submitting
from pipeline.slurm.submitting import Options
from store.errors import UsageError


@pytest.fixture
def job(workplace: Path, tmp_path: Path) -> Job:
    """A job on a copy of the finished store."""
    shutil.copytree(workplace / "stores" / "demo", tmp_path / "store")
    return Job(read_config(workplace / "configs" / "demo.toml"), tmp_path / "store", progress=False)


def _forget(job: Job, *shards: str) -> None:
    for shard in shards:
        (job.store.root / "commits" / job.store.run / f"{shard}.json").unlink()


def test_an_empty_store_needs_everything_in_order(job: Job, tmp_path: Path) -> None:
    fresh = Job(job.spec.config, tmp_path / "none", progress=False)
    found = chain.steps(fresh, 8)
    names = [step.name for step in found]
    last = ["examples", "connections", "visualize"]
    wanted = ["index", "calibrate", "scan", "scan-check", "fold", "fold-check", *last, "finish"]
    assert names == wanted
    after = {step.name: step.after for step in found}
    assert after["scan"] == ("calibrate",)
    assert after["fold"] == ("scan-check",)
    assert after["examples"] == after["connections"] == after["visualize"] == ("fold-check",)
    assert after["finish"] == ("examples", "connections", "visualize")
    assert {step.name: len(step.indices) for step in found if step.indices}["fold"] == 8
    assert [step.name for step in found if step.on_device] == ["calibrate", "scan", "examples", "visualize"]


def test_a_complete_store_needs_nothing(job: Job) -> None:
    assert chain.steps(job, 8) == []
    assert "nothing to submit" in submitting.submit(job, Options("c", str(job.store.root), 8))


def test_only_shares_that_lack_shards_are_sent(job: Job) -> None:
    layers = len(job.spec.layers)
    _forget(
        job,
        "fold/layer-0003",
        "fold/layer-0009",
        "fold/finish",
        "examples/finish",
        "connections/finish",
        "visualize/finish",
    )
    found = {step.name: step for step in chain.steps(job, 4)}
    assert list(found) == ["fold", "fold-check", "finish"]
    assert layers > 9
    assert found["fold"].indices == (1, 3)
    assert found["fold"].words[-1] == "{index}/4"
    assert found["fold"].after == ()


def test_a_check_names_the_first_stage_that_lacks_shards(job: Job) -> None:
    assert [chain.unready(job, check) for check in ("scan", "fold", "finish")] == ["", "", ""]
    _forget(job, "visualize/finish", "connections/finish", "fold/finish")
    assert chain.unready(job, "fold") == "", "the check runs the last shard itself"
    _forget(job, "fold/layer-0003")
    assert chain.unready(job, "finish").startswith("2 shard(s) of fold")
    _forget(job, "scan/00000")
    assert chain.unready(job, "fold") == "1 shard(s) of scan"


def test_a_chain_that_committed_nothing_is_the_last(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a permanent cause, such as a missing file, would make the chain submit jobs for ever."""
    from store import commits
    from store.logs import Log

    _forget(job, "fold/layer-0003", "fold/finish")
    done = len(commits.records(job.store.root, job.store.run))
    sent: list[int] = []
    monkeypatch.setattr(submitting, "_submit", lambda job, options, steps, number: [f"{sent.append(number)}"])
    monkeypatch.setattr(submitting, "_take_back", lambda *_: None)
    options = Options("c", str(job.store.root), 4)
    log = Log(job.store.root, {}, kind="slurm")
    log.write("submitted", chain=1, run=job.store.run, step="fold", job="5", done=done - 1)
    assert "resubmitted" in submitting.check(job, options, "fold", 1)
    assert sent == [2]
    log.write("submitted", chain=2, run=job.store.run, step="fold", job="9", done=done)
    assert "replaced" in submitting.check(job, options, "fold", 1)
    with pytest.raises(UsageError, match="committed nothing"):
        submitting.check(job, options, "fold", 2)
    assert sent == [2]


def test_scripts_say_what_sbatch_needs(workplace: Path, tmp_path: Path) -> None:
    arguments = ["slurm", str(workplace / "configs" / "demo.toml"), "--store", str(tmp_path / "s"), "--gres", "gpu:2",
                 "--partition", "big", "--time", "02:00:00", "--cpus", "6", "--array", "3", "--dry-run",
                 "--sbatch=--qos=low"]  # fmt: skip
    said = CliRunner().invoke(unitscope.cli, arguments, catch_exceptions=False).output
    scripts = {re.search(r"job-name=unitscope-(\S+)", s)[1]: s for s in said.split("#!/bin/bash")[1:]}  # type: ignore[index]
    for script in scripts.values():
        assert all(f"#SBATCH {o}\n" in script for o in ("--partition=big", "--time=02:00:00", "--qos=low", "--requeue"))
        assert "#SBATCH --cpus-per-task=6\n" in script
    assert {name for name, s in scripts.items() if "--gres=gpu:2" in s} == {
        "calibrate",
        "scan",
        "examples",
        "visualize",
    }
    assert "#SBATCH --array=0-2\n" in scripts["fold"]
    assert "--shard $SLURM_ARRAY_TASK_ID/3 --device cuda\n" in scripts["fold"]
    assert "--dependency=afterany:<examples>:<connections>:<visualize>" in scripts["finish"]
    for text in scripts.values():
        assert subprocess.run(["bash", "-n"], input=text, text=True, check=False).returncode == 0
    assert not (tmp_path / "s").exists(), "a dry run writes nothing"


def test_indices_are_written_as_ranges() -> None:
    assert submitting._ranges((0, 1, 2, 5, 7, 8)) == "0-2,5,7-8"


def test_without_slurm_it_says_so(workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue, "queued", lambda: None)
    done = CliRunner().invoke(
        unitscope.cli, ["slurm", str(workplace / "configs" / "demo.toml"), "--store", str(tmp_path / "s")]
    )
    assert isinstance(done.exception, UsageError)
    assert "--dry-run" in str(done.exception)
