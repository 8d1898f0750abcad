"""Seconds by phase, the shards' logs and the tables made of them."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from click.testing import CliRunner

import unitscope
from pipeline.runtime import timing
from pipeline.runtime.ordered_map import ordered_map
from pipeline.slurm import queue
from store import logs, timings
from store.status import lines_of


def test_a_phase_inside_a_phase_is_taken_off_it(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 1.0, 3.0, 10.0])  # forward begins, reduce begins, reduce ends, forward ends
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    with timing.counting() as seconds, timing.phase("forward"), timing.phase("reduce"):
        pass
    assert seconds.rounded() == {"wait": 0.0, "decode": 0.0, "forward": 8.0, "reduce": 2.0, "write": 0.0}


def test_threads_count_for_the_shard_they_work_for() -> None:
    """Two shards side by side in one process, each with threads of its own."""
    both = threading.Barrier(2, timeout=30)

    def decode(_: int) -> None:
        with timing.phase("decode"):
            time.sleep(0.002)

    def shard(pictures: int) -> float:
        with timing.counting() as seconds:
            both.wait()
            list(ordered_map(decode, range(pictures), 3))
        return seconds.rounded()["decode"]

    with ThreadPoolExecutor(2) as pool:
        few, many = pool.map(shard, (2, 40))
    assert few >= 0.004
    assert many >= 0.08


def test_nothing_is_counted_outside_a_shard() -> None:
    with timing.phase("forward"):
        pass
    with timing.counting() as seconds:
        pass
    assert set(seconds.rounded().values()) == {0.0}


def test_drawing_a_batch_is_waiting_and_working_on_it_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def slow() -> Iterator[int]:
        for i in range(3):
            now[0] += 1
            yield i

    with timing.counting() as seconds:
        for _ in timing.timed_iter(slow()):
            now[0] += 10
    assert seconds.rounded()["wait"] == 3.0


def test_a_torn_line_is_passed_over(tmp_path: Path) -> None:
    log = logs.Log(tmp_path, {"engine": "local"})
    log.write("begin", shard="1")
    with log.path.open("a") as file:
        file.write('{"event": "done", "ti')
    assert [event["event"] for event in logs.read(tmp_path)] == ["begin"]


def test_the_table_adds_up(tmp_path: Path) -> None:
    log = logs.Log(tmp_path, {})
    for shard, seconds in (("0", 2.0), ("0", 2.0), ("1", 4.0)):
        log.write("begin", run="r", stage="scan", shard=shard)
        phases = {"wait": seconds / 2, "decode": seconds, "forward": seconds / 4, "reduce": 0, "write": 0}
        log.write("done", run="r", stage="scan", shard=shard, seconds=seconds, phases=phases, size=64, unit="img")
    head, row = timings.table(logs.read(tmp_path))
    assert head.split()[:3] == ["stage", "shards", "workers"]
    assert row.split() == [
        "scan",
        "3",
        "1",
        "8.0",
        "50%",
        "100%",
        "25%",
        "0%",
        "0%",
        "24.0",
        "img/s",
        "2.00",
        "4.00",
        "1",
    ]


def test_every_shard_of_a_real_run_left_its_seconds(demo_store: Path) -> None:
    done = [event for event in logs.read(demo_store) if event["event"] == "done"]
    records = {(p.parent.name, p.stem) for p in demo_store.glob("commits/*/*/*.json")}
    assert {(e["stage"], e["shard"]) for e in done} == records
    scan = [e for e in done if e["stage"] == "scan"]
    for name in ("decode", "forward", "reduce", "write"):
        assert all(e["phases"][name] > 0 for e in scan), name
    assert all(set(e) >= {"host", "pid", "device", "processor", "seconds", "images_per_second"} for e in scan)
    said = CliRunner().invoke(unitscope.cli, ["status", str(demo_store), "--timings"]).output
    assert "forward" in said
    assert "visualize" in said.splitlines()[-1]


def test_status_joins_the_store_with_the_queue(
    demo_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One shard is running, one's job is gone: Slurm knows the first, the second is lost."""
    import shutil

    store = tmp_path / "store"
    shutil.copytree(demo_store, store)
    (run,) = [p.name for p in (store / "commits").iterdir()]
    for shard in ("finish", "0001-000000"):
        (store / "commits" / run / "visualize" / f"{shard}.json").unlink()
    log = logs.Log(store, {"engine": "slurm", "node": "n2"})
    log.write("begin", run=run, stage="visualize", shard="0001-000000", job="7_1")
    log.write("begin", run=run, stage="visualize", shard="finish", job="7_2")
    logs.Log(store, {}, kind="slurm").write("submitted", chain=1, run=run, step="visualize", job="7", done=3)
    monkeypatch.setattr(queue, "queued", lambda: [queue.Queued("7", "1", "RUNNING", "None", "n2")])
    text = CliRunner().invoke(unitscope.cli, ["status", str(store)], catch_exceptions=False).output
    assert "0001-000000: begun" in text
    assert "job 7_1 RUNNING" in text
    assert "finish: begun" in text
    assert "job 7_2 is gone from the queue: lost" in text
    assert "visualize       1 RUNNING on n2" in text
    assert "3 shards of 5 so far" in text


def test_status_says_on_which_kinds_of_processor_shards_were_computed(demo_store: Path, tmp_path: Path) -> None:
    import shutil

    from pipeline.runtime.processor import processor_kind

    store = tmp_path / "store"
    shutil.copytree(demo_store, store)
    lines = [line for line in lines_of(store, False) if "processor" in line]
    assert len(lines) == 1
    assert processor_kind() in lines[0]
    assert "promised" not in lines[0]
    (run,) = [p.name for p in (store / "commits").iterdir()]
    logs.Log(store, {}).write("done", run=run, stage="scan", shard="00000", processor="another kind")
    (line,) = [line for line in lines_of(store, False) if "processor" in line]
    assert "another kind (1 shards)" in line
    assert "on one kind only" in line


def test_logs_are_lines_of_json(demo_store: Path) -> None:
    for path in (demo_store / "logs").rglob("*.jsonl"):
        for line in path.read_text().splitlines():
            assert json.loads(line)["event"] in ("plan", "begin", "done")
