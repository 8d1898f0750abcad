"""Run shards as tasks of a Ray cluster.

Ray places the tasks, retries lost ones and uses new nodes; the store alone says which shards are done. Tasks are used
rather than actors, because a pool of actors hangs if a node dies and no other node has room for them. `max_calls=0`
keeps the worker process, and with it the model, from task to task. Otherwise every task with a GPU would start
a process.
"""

from __future__ import annotations

import logging
import math
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.config import Config
from pipeline.executors import worker
from pipeline.executors.worker import Outcome, Task, WorkerSpec
from pipeline.job import Job
from pipeline.runtime.devices import resolve_device
from store.errors import UsageError
from store.stages import spec_of

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
try:
    import ray
except ImportError:
    raise UsageError("--executor ray needs Ray: pip install 'unitscope[ray]'") from None

RETRIES = 3  # how often Ray itself reruns a task whose worker or node died
PROBE = 600.0  # seconds to wait for the first task: a cluster that grows on demand may start without a node


@dataclass(frozen=True)
class Need:
    """The resources of a node that one task takes."""

    cpus: int
    gpus: float

    def fits(self, resources: dict[str, float]) -> int:
        """Return how many tasks a node with these resources runs at the same time."""
        by_cpu = math.floor(resources.get("CPU", 0.0) / self.cpus + 1e-9)
        return min(by_cpu, math.floor(resources.get("GPU", 0.0) / self.gpus + 1e-9)) if self.gpus else by_cpu


def connect(config: Config, root: Path, address: str | None) -> Job:
    """Connect to the cluster at `address` ("auto" or HOST:PORT), else at $RAY_ADDRESS, else start Ray here.

    Returns the job as the nodes of the cluster will compute it. Raises UsageError if no cluster answers, if no node has
    room for a task, or if a node lacks the device.
    """
    address = address or os.environ.get("RAY_ADDRESS")
    try:
        ray.init(address=address, include_dashboard=None if address else False, log_to_driver=False,
                 logging_level=logging.ERROR)  # fmt: skip
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise UsageError(f"no Ray cluster answers at {address or 'this machine'}: {error}") from error
    need = _need(config, "cuda" if _wants_gpu(config) else "cpu")
    probe = ray.remote(resolve_device).options(num_cpus=need.cpus, num_gpus=need.gpus, max_retries=RETRIES)
    try:
        device: str = ray.get(probe.remote(config.compute.device), timeout=PROBE if address else 60.0)
    except ray.exceptions.GetTimeoutError:
        raise UsageError(
            f"the Ray cluster has no room for a task of {need.cpus} CPUs and {need.gpus:g} GPUs; it has "
            f"{_resources_text()}: lower [compute] gpus or threads"
        ) from None
    except ray.exceptions.RayTaskError as error:
        raise UsageError(f"a node of the Ray cluster cannot run tasks: {error.cause}") from error
    # A task uses as many threads as Ray gives it cores, however many cores its node has.
    compute = replace(config.compute, device=device, threads=need.cpus, workers=1)
    return Job(replace(config, compute=compute), root, device=device, where={"engine": "ray"})


def _wants_gpu(config: Config) -> bool:
    wanted = config.compute.device
    return wanted == "cuda" or (wanted == "auto" and ray.cluster_resources().get("GPU", 0.0) > 0)


def _need(config: Config, device: str) -> Need:
    """Return what a task takes: `[compute] gpus` and `threads`.

    By default it takes one GPU on "cuda", and that GPU's share of the cores of the node that has the fewest per GPU;
    on "cpu" it takes one core.
    """
    compute = config.compute
    gpus = compute.gpus or (1.0 if device == "cuda" else 0.0)
    if gpus and not compute.threads:
        nodes = [n["Resources"] for n in ray.nodes() if n["Alive"] and n["Resources"].get("GPU")]
        shares = [math.floor(n.get("CPU", 1.0) / (n["GPU"] / gpus)) for n in nodes]
        return Need(max(min(shares, default=1), 1), gpus)
    return Need(compute.threads or 1, gpus)


def _resources_text() -> str:
    resources = ray.cluster_resources()
    return f"{resources.get('CPU', 0):g} CPUs and {resources.get('GPU', 0):g} GPUs on {len(ray.nodes())} node(s)"


class RayTasks:
    """An engine of Ray tasks, of which at most `most` run at a time; 0 means as many as the cluster has room for."""

    def __init__(self, job: Job, most: int = 0) -> None:
        self.need = _need(job.spec.config, job.spec.device)
        self.most = most
        self._given = ray.put(worker.given(job, engine="ray"))
        self._on_device = ray.remote(
            num_cpus=self.need.cpus, num_gpus=self.need.gpus, max_calls=0, max_retries=RETRIES
        )(_compute)
        self._on_cores = ray.remote(num_cpus=1, num_gpus=0, max_calls=0, max_retries=RETRIES)(_compute)
        self._flying: dict[Any, Task] = {}

    def slots(self, stage: str) -> int:
        need = self.need if spec_of(stage).needs_network else Need(1, 0.0)
        slots = sum(need.fits(node["Resources"]) for node in ray.nodes() if node["Alive"])
        return min(slots, self.most) if self.most else slots

    def capacity(self, stage: str) -> int:
        """Return twice the slots, or `most` if it is given.

        With as many tasks queued as run, no worker waits for the driver, and an autoscaler sees the demand.
        """
        return self.most or max(2 * self.slots(stage), 1)

    def submit(self, task: Task) -> None:
        name = f"{task.stage} {task.shard.name}"
        compute = self._on_device if spec_of(task.stage).needs_network else self._on_cores
        self._flying[compute.options(name=name).remote(self._given, task)] = task

    def wait(self, seconds: float) -> list[Outcome]:
        if not ray.wait(list(self._flying), timeout=seconds)[0]:
            return []
        ready, _ = ray.wait(list(self._flying), num_returns=len(self._flying), timeout=0)
        return [self._outcome(ref, self._flying.pop(ref)) for ref in ready]

    def _outcome(self, ref: Any, task: Task) -> Outcome:
        try:
            outcome: Outcome = ray.get(ref)
            return outcome
        except ray.exceptions.RayError as error:
            return Outcome(task, error=f"{type(error).__name__}: {str(error).strip().splitlines()[0]}")

    def drop(self, task: Task) -> None:
        for ref in [ref for ref, running in self._flying.items() if running == task]:
            del self._flying[ref]
            ray.cancel(ref, force=True)

    def close(self) -> None:
        for ref in self._flying:
            ray.cancel(ref, force=True)
        ray.shutdown()


_jobs: dict[str, Job] = {}  # by fingerprint; a worker process has one, as Ray keeps a process for one driver
_first_gpus: list[Any] = []  # the GPUs of this process's first task


def _compute(given: WorkerSpec, task: Task) -> Outcome:
    if spec_of(task.stage).needs_network:
        _refuse_another_gpu(ray.get_runtime_context().get_accelerator_ids().get("GPU", []))
    job = _jobs.get(given.fingerprint)
    if job is None:
        node = ray.get_runtime_context().get_node_id()
        try:
            job = worker.begin(replace(given, where=given.where | {"node": node[:12]}))
        except UsageError as error:
            return Outcome(task, error=str(error), fatal=True)
        _jobs[given.fingerprint] = job
    return worker.perform(job, task)


def _refuse_another_gpu(assigned: list[Any]) -> None:
    """Exit if Ray gives this process another GPU than its first task had; Ray then reruns the task in a new process.

    A process keeps using the GPUs that were visible when CUDA was initialized. If it went on, two tasks might share a
    GPU and each run at half speed.
    """
    if not _first_gpus:
        _first_gpus.append(assigned)
    if _first_gpus[0] != assigned:
        os._exit(1)
