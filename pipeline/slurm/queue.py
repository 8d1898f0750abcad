"""Read what was submitted to Slurm for a store, and what is still queued. Only squeue is needed, not accounting."""

from __future__ import annotations

import shutil
import subprocess
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from store import logs
from store.errors import UsageError

SHOWN = 10  # the most nodes that are listed


@dataclass(frozen=True)
class Submitted:
    """A job of a chain; `done` counts the shards that were committed when its chain was submitted."""

    chain: int
    run: str
    step: str
    job: str
    done: int


@dataclass(frozen=True)
class Queued:
    """A job that squeue lists, or one task of an array: `index` is its index, or "N/A" for a job that is no array."""

    job: str
    index: str
    state: str
    reason: str
    node: str

    @property
    def name(self) -> str:
        return f"{self.job}_{self.index}" if self.index != "N/A" else self.job


def submitted(root: Path) -> list[Submitted]:
    """Return all jobs that were ever submitted for a store, from its log."""
    return [
        Submitted(int(e["chain"]), str(e["run"]), str(e["step"]), str(e["job"]), int(e["done"]))
        for e in logs.read(root, "slurm")
        if e["event"] == "submitted"
    ]


def queued() -> list[Queued] | None:
    """Return the whole queue, one entry per task, or None if this machine has no Slurm.

    Raises UsageError if squeue fails or the controller does not answer within 60 s.
    """
    if not shutil.which("squeue"):
        return None
    command = ["squeue", "--noheader", "--array", "--format=%F|%K|%T|%r|%N"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    except subprocess.TimeoutExpired:
        raise UsageError("squeue does not answer: is Slurm's controller up?") from None
    if answer.returncode:
        raise UsageError((answer.stderr.strip() or "squeue failed").splitlines()[-1])
    return [Queued(*line.split("|")[:5]) for line in answer.stdout.splitlines() if line.count("|") >= 4]


def of_store(jobs: list[Submitted], whole_queue: list[Queued]) -> dict[str, list[Queued]]:
    """Return the queued jobs of a store, by step, in the order of submission. `jobs` are those submitted for it."""
    step_of = {job.job: job.step for job in jobs}
    steps: dict[str, list[Queued]] = {step: [] for step in step_of.values()}
    for entry in whole_queue:
        if entry.job in step_of:
            steps[step_of[entry.job]].append(entry)
    return {step: entries for step, entries in steps.items() if entries}


def lines_of(root: Path, whole_queue: list[Queued] | None, silent: str) -> list[str]:
    """Return lines about the jobs of this store that Slurm still has, or none if no chain was submitted.

    `whole_queue` is None without Slurm. `silent` is the error if Slurm did not answer, else "".
    """
    jobs = submitted(root)
    if not jobs:
        return []
    if silent:
        return [f"slurm  {silent}"]
    if whole_queue is None:
        return ["slurm  jobs were submitted for this store, but this machine has no squeue to ask about them"]
    steps = of_store(jobs, whole_queue)
    chain = max(job.chain for job in jobs)
    if not steps:
        return [f"slurm  chain {chain}: nothing is queued; `unitscope slurm CONFIG` submits what is missing, if any"]
    lines = []
    for step, entries in steps.items():
        groups: dict[str, list[str]] = defaultdict(list)
        for entry in entries:
            groups[entry.state if entry.state != "PENDING" else f"PENDING ({entry.reason})"].append(entry.node)
        states = [f"{len(nodes)} {state}{_on(nodes)}" for state, nodes in groups.items()]
        lines.append(f"slurm  chain {chain}: {step:15} {', '.join(states)}")
    return lines


def _on(nodes: list[str]) -> str:
    names = sorted({node for node in nodes if node})
    return f" on {', '.join(names[:SHOWN])}" if names else ""
