"""A real Ray cluster of several nodes on one machine: a worker and then a whole node are killed while they work."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from support import faults
from support.sharing import shared_folder

import unitscope
from store import logs
from store.errors import UsageError

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'unitscope[ray]'")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head node that takes no tasks, and two nodes of one core and one pretended GPU each."""
    from ray.cluster_utils import Cluster

    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": faults.PYTHONPATH}
    settings = {
        "health_check_period_ms": 500, "health_check_failure_threshold": 4, "health_check_initial_delay_ms": 0,
        "worker_niceness": 0,  # Ray's workers give way to all other processes: beside other tests they hardly run
        "num_workers_soft_limit": 2,  # a node keeps its process for tasks with a GPU and that for tasks without
    }  # fmt: skip
    head = {"num_cpus": 0, "num_gpus": 0, "include_dashboard": False, "object_store_memory": 80 << 20}
    made = Cluster(initialize_head=True, head_node_args={**head, "_system_config": settings})
    for _ in range(2):
        made.add_node(num_cpus=1, num_gpus=1, object_store_memory=80 << 20)
    made.wait_for_nodes()
    yield made
    made.shutdown()


def test_a_worker_and_a_node_are_lost(cluster: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = shared_folder(tmp_path_factory, "faults")
    wanted = faults.undisturbed(folder)
    store = tmp_path_factory.mktemp("ray") / "store"
    command = ("run", folder / "faults.toml", "--store", store, "--executor", "ray", "--address", cluster.address)
    with faults.running(*command) as run:
        by_worker = faults.kill_in_flight(store, "scan", lambda event: faults.kill_now([event["pid"]]), run)
        by_node = faults.kill_in_flight(store, "visualize", lambda event: _kill_node(cluster, store, event), run)
        faults.finish(run)
    assert faults.digests(store) == wanted
    assert faults.run_twice(store) == by_worker | by_node
    assert {e["engine"] for e in logs.read(store) if e["event"] == "begin"} == {"ray"}


def _kill_node(cluster: Any, store: Path, event: dict[str, Any]) -> list[int]:
    """Kill the node's raylet and every worker on it with SIGKILL, as in a power failure."""
    (node,) = [n for n in cluster.list_all_nodes() if n.node_id.startswith(event["node"])]
    workers = {e["pid"] for e in logs.read(store) if e.get("node") == event["node"]}
    raylet = node.all_processes["raylet"][0].process.pid
    os.kill(raylet, signal.SIGKILL)
    dead = faults.kill_now([pid for pid in workers if faults.alive(pid)])
    cluster.remove_node(node, allow_graceful=False)
    return dead


def test_a_node_takes_as_many_tasks_as_its_scarcest_resource_allows() -> None:
    from pipeline.executors.ray_tasks import Need

    node = {"CPU": 12.0, "GPU": 2.0, "memory": 1e9}
    assert [Need(c, g).fits(node) for c, g in ((1, 0.0), (4, 1.0), (6, 0.5), (1, 0.25), (12, 1.0))] == [12, 2, 2, 8, 1]
    assert Need(1, 1.0).fits({"CPU": 64.0}) == 0


def test_a_process_that_is_given_another_gpu_ends_before_it_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.executors import ray_tasks

    ended: list[int] = []
    monkeypatch.setattr(os, "_exit", ended.append)
    monkeypatch.setattr(ray_tasks, "_first_gpus", [])
    ray_tasks._refuse_another_gpu(["1"])
    ray_tasks._refuse_another_gpu(["1"])
    assert ended == []
    ray_tasks._refuse_another_gpu(["0"])
    assert ended == [1]


def test_without_ray_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import pipeline.executors

    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delattr(pipeline.executors, "ray_tasks", raising=False)
    monkeypatch.delitem(sys.modules, "pipeline.executors.ray_tasks", raising=False)
    command = ["run", str(faults.ROOT / "configs" / "demo.toml"), "--store", str(tmp_path / "s"), "--executor", "ray"]
    done = CliRunner().invoke(unitscope.cli, command)
    assert isinstance(done.exception, UsageError)
    assert "unitscope[ray]" in str(done.exception)
    done = CliRunner().invoke(unitscope.cli, [*command[:-2], "--address", "auto"])
    assert "--executor ray" in str(done.exception)
