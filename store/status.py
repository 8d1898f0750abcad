"""What a store says of its runs, joined with what its logs and Slurm's queue say: shards done, in flight and lost."""

from __future__ import annotations

import functools
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.slurm import queue
from pipeline.slurm.queue import Queued
from store import layout, logs, parquet, publish, timings
from store.errors import UsageError
from store.publish import Record

Ask = Callable[[], tuple[list[Queued] | None, str]]

STAGES = ("index", "calibrate", "scan", "fold", "examples", "visualize", "groups")
SHOWN = 10  # shards or pictures listed one by one


def lines_of(root: Path, with_timings: bool) -> list[str]:
    records = publish.records(root)
    ask = functools.cache(_ask)
    if not records:
        return [f"{root}: an empty store; nothing is committed yet", *_queue_lines(root, ask)]
    events = logs.read(root)
    lines = []
    for run in sorted({r.run for r in records}):
        mine = [r for r in records if r.run == run]
        own = [e for e in events if e.get("run") == run]
        lines += [f"{run}  fingerprint {mine[0].fingerprint[:12]}", *_stages(mine, own)]
        lines += _in_flight(mine, own, ask)
        lines += _images(root, mine)
        lines += timings.table(own) if with_timings else []
    return lines + _queue_lines(root, ask)


def _ask() -> tuple[list[Queued] | None, str]:
    """What squeue lists (None without Slurm), and why it does not answer."""
    try:
        return queue.queued(), ""
    except UsageError as error:
        return None, str(error)


def _stages(records: list[Record], events: list[dict[str, Any]]) -> list[str]:
    done = Counter(r.stage for r in records)
    finished = {r.stage for r in records if r.shard in ("finish", "index", "calibrate")}
    planned = {str(e["stage"]): sum(int(n) for n in e["phases"]) for e in events if e["event"] == "plan"}
    lines = []
    for stage in STAGES:
        if done[stage]:
            complete = stage in finished or (
                stage == "scan" and ("fold" in finished or done[stage] == planned.get(stage))
            )
            so_far = f"of {planned[stage]} so far" if stage in planned else "so far"
            lines.append(f"  {stage:10} {done[stage]:6} shards {'complete' if complete else so_far}")
    return lines


def _in_flight(records: list[Record], events: list[dict[str, Any]], ask: Ask) -> list[str]:
    """Shards that were begun and have no record, with what the queue says of the job that began them."""
    committed = {(r.stage, r.shard) for r in records}
    last: dict[tuple[str, str], dict[str, Any]] = {}
    for event in events:
        if event["event"] in ("begin", "failed") and (event["stage"], event["shard"]) not in committed:
            last[str(event["stage"]), str(event["shard"])] = event
    if not last:
        return []
    queued = ask()[0] if any("job" in event for event in last.values()) else None
    states = None if queued is None else {one.name: one.state for one in queued}
    lines = [f"  {stage:10} {shard}: {_fate(event, states)}" for (stage, shard), event in sorted(last.items())]
    more = [f"             and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
    return lines[:SHOWN] + more


def _fate(event: dict[str, Any], states: dict[str, str] | None) -> str:
    place = f"{event.get('node') or event['host']}, pid {event['pid']}"
    if event["event"] == "failed":
        return f"failed on {place}: {str(event['error']).strip().splitlines()[-1]}"
    ago = f"begun {time.time() - float(event['time']):.0f} s ago on {place}"
    if "job" not in event or states is None:
        return ago
    state = states.get(str(event["job"]))
    if state is None:
        return f"{ago}; its job {event['job']} is gone from the queue: lost, to be sent again"
    return f"{ago}; job {event['job']} {state}"


def _images(root: Path, records: list[Record]) -> list[str]:
    index = next((r for r in records if r.stage == "index"), None)
    if index is None:
        return []
    late = {int(i): str(reason) for r in records if r.stage == "scan" for i, reason in r.facts["rejected"]}
    path = root / layout.dataset_table(str(index.facts["dataset"]), "images")
    rows = parquet.read(path, ["image_id", "path", "status", "reason"]).to_pylist()
    bad = [
        (r["path"], late.get(r["image_id"]) or r["reason"])
        for r in rows
        if r["status"] == "rejected" or r["image_id"] in late
    ]
    more = [f"    and {len(bad) - 20} more: SELECT path, reason FROM rejected_images"] if len(bad) > 20 else []
    listed = [f"    {path}: {reason}" for path, reason in bad[:20]]
    return [f"  images     {len(rows):6}, {len(bad)} rejected", *listed, *more]


def _queue_lines(root: Path, ask: Ask) -> list[str]:
    """What of this store's chain of jobs Slurm still has; nothing where none was submitted."""
    jobs = queue.submitted(root)
    if not jobs:
        return []
    found, silent = ask()
    if silent:
        return [f"slurm  {silent}"]
    if found is None:
        return ["slurm  jobs were submitted for this store; this machine has no squeue to ask"]
    steps = queue.of_store(jobs, found)
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
