"""Worker processes on one machine: one dies, the user stops the run, the files of another node are not visible yet."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest
from support import faults
from support.sharing import shared_folder

from pipeline.config import read_config
from pipeline.executors import readiness, worker
from pipeline.executors.processes import Processes, devices_of_workers
from pipeline.executors.worker import Task
from pipeline.job import Job, Shard
from pipeline.stages import scan, stage_named
from store import publish
from store.errors import UsageError


def test_a_dead_worker_is_replaced_and_ctrl_c_leaves_a_store_to_go_on_with(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = shared_folder(tmp_path_factory, "faults")
    wanted = faults.undisturbed(folder)
    store = tmp_path_factory.mktemp("processes") / "store"
    command = ("run", folder / "faults.toml", "--store", store, "--workers", "2")
    with faults.running(*command) as run:
        by_worker = faults.kill_in_flight(store, "scan", lambda event: faults.kill_now([event["pid"]]), run)
        by_user = faults.kill_in_flight(store, "visualize", lambda event: _stop(run, store), run)
        _, said = run.communicate(timeout=faults.PATIENCE)
    assert run.returncode == 130
    assert "run the same command again" in said
    faults.complete(*command)
    assert faults.digests(store) == wanted
    assert faults.run_twice(store) == by_worker | by_user


def _stop(run: object, store: Path) -> list[int]:
    """Send SIGINT to the command and its workers, as Ctrl-C does. The workers ignore it, and the command stops them."""
    assert hasattr(run, "pid")
    workers = [event["pid"] for event in faults.in_flight(store) if faults.alive(event["pid"])]
    for pid in (*workers, run.pid):
        os.kill(pid, signal.SIGINT)
    deadline = time.monotonic() + faults.PATIENCE
    while any(faults.alive(pid) for pid in workers):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return [pid for pid in workers if any(event["pid"] == pid for event in faults.in_flight(store))]


@pytest.fixture(scope="module")
def scanned(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """A job whose scan is complete and whose fold has not begun."""
    from pipeline import driver

    folder = tmp_path_factory.mktemp("scanned")
    config = folder / "small.toml"
    config.write_text(
        '[model]\nsource = "torchvision:squeezenet1_1"\nweights = "random:0"\nlayers = ["features.3.*"]\n'
        '[dataset]\nsource = "package:demo"\nlimit = 6\n[scan]\nbatch_size = 2\nshard_size = 2\n'
        '[compute]\ndevice = "cpu"\n'
    )
    job = Job(read_config(config), folder / "store", progress=False)
    driver.run(job, ("index", "calibrate", "scan"))
    return job


def test_a_fold_waits_for_records_that_are_not_in_sight(scanned: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network file system may show another node's files late. The fold must not go on without them."""
    (shown := scanned.store.root / "commits" / scanned.store.run / "scan" / "00001.json").rename(
        hidden := shown.with_suffix(".late")
    )
    threading.Timer(0.5, hidden.rename, (shown,)).start()
    fold = stage_named("fold")
    assert readiness.unseen(scanned, fold) == ["scan 00001"]
    monkeypatch.setattr(readiness, "STALE", 30.0)
    outcome = worker.perform(scanned, Task("fold", fold.phases(scanned)[0][0]))
    assert outcome.error == ""
    assert shown.exists()


def test_a_fold_gives_up_on_records_that_never_come(scanned: Job) -> None:
    shown = scanned.store.root / "commits" / scanned.store.run / "scan" / "00001.json"
    shown.rename(hidden := shown.with_suffix(".gone"))
    try:
        with pytest.raises(TimeoutError, match="scan 00001"):
            readiness.wait_for_inputs(scanned, stage_named("fold"), Shard("layer-0000"), patience=0.1)
    finally:
        hidden.rename(shown)


def test_a_straggler_that_disagrees_is_an_error_though_the_shard_is_done(scanned: Job) -> None:
    """The results of the second copy are compared with what is committed, and a difference is reported."""
    shard = scan.STAGE.phases(scanned)[0][0]
    worker.run_shard(scanned, scan.STAGE, shard)  # equal bytes: nothing happens
    other = Shard(shard.name, 2, 4, 2)  # another range under the first one's name
    with pytest.raises(publish.DisagreementError, match="other contents"):
        worker.run_shard(scanned, scan.STAGE, other)


def test_a_worker_that_would_compute_something_else_says_so(scanned: Job, tmp_path: Path) -> None:
    from dataclasses import replace

    asked = replace(worker.given(scanned), fingerprint="another")
    with pytest.raises(UsageError, match="same versions of torch and unitscope"):
        worker.begin(asked)
    with pytest.raises(UsageError, match="cannot be entered"):
        worker.begin(replace(asked, folder=str(tmp_path / "elsewhere")))


def test_bad_input_in_a_worker_is_fatal_and_a_dead_worker_is_not(scanned: Job) -> None:
    from dataclasses import replace

    engine = Processes(replace(worker.given(scanned), fingerprint="another"), 1)
    try:
        engine.submit(Task("scan", Shard("00000", 0, 2, 2)))
        (outcome,) = _outcomes(engine)
        assert outcome.fatal
        assert "same versions" in outcome.error
        engine._workers[0].process.kill()
        engine.submit(Task("scan", Shard("00000", 0, 2, 2), 1))
        (outcome,) = _outcomes(engine)
        assert not outcome.fatal
        assert "died (exit -9)" in outcome.error
    finally:
        engine.close()


def _outcomes(engine: Processes) -> list[worker.Outcome]:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if found := engine.wait(1.0):
            return found
    raise AssertionError("no outcome")


def test_workers_take_the_visible_gpus_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    assert devices_of_workers(5) == ["2", "5", "2", "5", "2"]
