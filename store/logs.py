"""Logs of a store: JSON lines under `logs/`, a file a process, outside every promise of byte identity.

They say what was tried, where and how long it took; what is done is told by the commit records alone.
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
    """Appends events to this process' own file, made with the first. May be called from several threads at once.

    `where`: facts that every line carries.
    """

    def __init__(self, root: Path, where: dict[str, str], kind: str = "shards") -> None:
        self.where = {"host": socket.gethostname(), "pid": os.getpid()} | where
        name = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}.jsonl"
        self.path = root / layout.LOGS / kind / name

    def write(self, event: str, **facts: Any) -> None:
        """One line in one write, so that a process killed meanwhile leaves whole lines before it."""
        body = {"event": event, "time": round(time.time(), 3)} | self.where | facts
        line = (json.dumps(body) + "\n").encode()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, line)
        finally:
            os.close(descriptor)


def slurm_facts() -> dict[str, str]:
    """Which Slurm job this process is, where it is one; an array's task as JOB_INDEX, as squeue writes it."""
    job, array = os.environ.get("SLURM_JOB_ID"), os.environ.get("SLURM_ARRAY_JOB_ID")
    if not job:
        return {}
    task = f"{array}_{os.environ.get('SLURM_ARRAY_TASK_ID')}" if array else job
    return {"engine": "slurm", "job": task, "node": os.environ.get("SLURMD_NODENAME", "")}


def read(root: Path, kind: str = "shards") -> list[dict[str, Any]]:
    """All events of a store in order of time. A line that a dying machine left unfinished is passed over."""
    found = [event for path in sorted((root / layout.LOGS / kind).glob("*.jsonl")) for event in _lines(path)]
    return sorted(found, key=lambda event: float(event["time"]))


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    for line in path.read_text(errors="replace").splitlines():
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict) and "time" in event and "event" in event:
            yield event
