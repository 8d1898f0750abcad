"""What was submitted to Slurm for a store, and what of it is still queued: squeue alone, no accounting."""

from __future__ import annotations

import shutil
import subprocess
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from store import logs
from store.errors import UsageError

SHOWN = 10  # nodes listed one by one


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
    """A job that squeue lists; of an array, one task (`index`) or several that are pending together."""

    job: str
    index: str
    state: str
    reason: str
    node: str

    @property
    def name(self) -> str:
        return f"{self.job}_{self.index}" if self.index != "N/A" else self.job


def submitted(root: Path) -> list[Submitted]:
    return [
        Submitted(int(e["chain"]), str(e["run"]), str(e["step"]), str(e["job"]), int(e["done"]))
        for e in logs.read(root, "slurm")
        if e["event"] == "submitted"
    ]


def queued() -> list[Queued] | None:
    """Everything in the queue, a task a line; None where this machine has no Slurm. Raises UsageError where the
    controller does not answer."""
    if not shutil.which("squeue"):
        return None
    command = ["squeue", "--noheader", "--array", "--format=%F|%K|%T|%r|%N"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    except subprocess.TimeoutExpired:
        raise UsageError("squeue does not answer: is Slurm's controller up?") from None
    if found.returncode:
        raise UsageError((found.stderr.strip() or "squeue failed").splitlines()[-1])
    return [Queued(*line.split("|")[:5]) for line in found.stdout.splitlines() if line.count("|") >= 4]


def of_store(jobs: list[Submitted], found: list[Queued]) -> dict[str, list[Queued]]:
    """The queued jobs that were submitted for a store, by step, in the order of submission."""
    step_of = {job.job: job.step for job in jobs}
    steps: dict[str, list[Queued]] = {step: [] for step in step_of.values()}
    for one in found:
        if one.job in step_of:
            steps[step_of[one.job]].append(one)
    return {step: entries for step, entries in steps.items() if entries}


def lines_of(root: Path, found: list[Queued] | None, silent: str) -> list[str]:
    """Return what Slurm still has of this store's chain of jobs, as lines; none if no chain was submitted.

    `found` is the whole queue (None without Slurm), and `silent` says why it did not answer, if so.
    """
    jobs = submitted(root)
    if not jobs:
        return []
    if silent:
        return [f"slurm  {silent}"]
    if found is None:
        return ["slurm  jobs were submitted for this store; this machine has no squeue to ask"]
    steps = of_store(jobs, found)
    chain = max(job.chain for job in jobs)
    if not steps:
        return [f"slurm  chain {chain}: nothing is queued; `unitscope slurm CONFIG` submits what is missing, if any"]
    lines = []
    for step, entries in steps.items():
        groups: dict[str, list[str]] = defaultdict(list)
        for one in entries:
            groups[one.state if one.state != "PENDING" else f"PENDING ({one.reason})"].append(one.node)
        states = [f"{len(nodes)} {state}{_on(nodes)}" for state, nodes in groups.items()]
        lines.append(f"slurm  chain {chain}: {step:15} {', '.join(states)}")
    return lines


def _on(nodes: list[str]) -> str:
    names = sorted({node for node in nodes if node})
    return f" on {', '.join(names[:SHOWN])}" if names else ""
