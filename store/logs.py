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

from store import layout, regular_file

_MOST = 1e15
_EVERY = ("host", "pid", "time")
_SHARD = ("run", "stage", "shard")
_FIELDS = {
    "plan": ("run", "stage", "phases"),
    "begin": _SHARD,
    "failed": (*_SHARD, "error"),
    "done": (*_SHARD, "seconds", "phases", "size", "unit"),
    "overtaken": (*_SHARD, "seconds", "phases", "size", "unit"),
    "submitted": ("chain", "run", "step", "job", "done"),
}
_TYPES: dict[str, type | tuple[type, ...]] = {
    "host": str, "pid": int, "time": float, "run": str, "stage": str, "shard": str, "error": str, "unit": str,
    "seconds": float, "phases": (dict, list), "size": int, "chain": int, "step": str, "job": str, "done": int,
    "node": str, "processor": str,
}  # fmt: skip


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
    try:
        text = regular_file.read(path).decode(errors="replace")
    except OSError:
        return
    for line in text.splitlines():
        try:
            event = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if _is_event(event):
            yield event


def _is_event(event: Any) -> bool:
    """Whether a line is an event whose fields have their types. In a store from elsewhere, anything may stand there."""
    if not isinstance(event, dict) or not isinstance(event.get("event"), str) or event["event"] not in _FIELDS:
        return False
    return all(name in event for name in _EVERY) and all(
        _is(event[name], kind) for name, kind in _TYPES.items() if name in event
    )


def is_complete(event: dict[str, Any]) -> bool:
    """Whether an event has all fields of its kind."""
    return all(name in event for name in _FIELDS[event["event"]])


def _is(value: Any, kind: type | tuple[type, ...]) -> bool:
    if isinstance(kind, tuple):
        return any(_is(value, one) for one in kind)
    if kind is dict:
        return isinstance(value, dict) and all(_is(number, float) for number in value.values())
    if kind is list:
        return isinstance(value, list) and all(_is(number, int) for number in value)
    if kind is str:
        return isinstance(value, str)
    numbers = (int, float) if kind is float else int
    return isinstance(value, numbers) and not isinstance(value, bool) and abs(value) < _MOST
