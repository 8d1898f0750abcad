"""Logs of a store: JSON lines under `logs/`, one file per process.

Logs say what was tried, where, and how long it took. Only the commit records say what is done. Logs are the one part of
a store that is not byte-identical when a run is repeated.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from store import layout


class Log:
    """Appends events to this process's own file, which the first event creates. Safe to call from several threads.

    `where`: facts that are written on every line.
    """

    def __init__(self, root: Path, where: dict[str, str], kind: str = "shards") -> None:
        self.where = {"host": socket.gethostname(), "pid": os.getpid()} | where
        name = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}.jsonl"
        self.path = root / layout.LOGS / kind / name

    def write(self, event: str, **facts: Any) -> None:
        """Append one event as a line, in a single write: if the process is killed, the lines before it stay whole."""
        body = {"event": event, "time": round(time.time(), 3)} | self.where | facts
        line = (json.dumps(body) + "\n").encode()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, line)
        finally:
            os.close(descriptor)


def slurm_facts() -> dict[str, str]:
    """Return the Slurm job and node of this process, or {} if it is not in a Slurm job.

    A task of an array is named JOB_INDEX, as squeue prints it.
    """
    job, array = os.environ.get("SLURM_JOB_ID"), os.environ.get("SLURM_ARRAY_JOB_ID")
    if not job:
        return {}
    task = f"{array}_{os.environ.get('SLURM_ARRAY_TASK_ID')}" if array else job
    return {"engine": "slurm", "job": task, "node": os.environ.get("SLURMD_NODENAME", "")}


def read(root: Path, kind: str = "shards") -> list[dict[str, Any]]:
    """Return all events of a store in order of time. Unfinished lines, which a crash can leave, are skipped."""
    events = [event for path in sorted((root / layout.LOGS / kind).glob("*.jsonl")) for event in _lines(path)]
    return sorted(events, key=lambda event: float(event["time"]))


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    for line in path.read_text(errors="replace").splitlines():
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict) and "time" in event and "event" in event:
            yield event
