"""The status of a store's runs, from its records and logs: which shards are done, in flight or lost."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from store import commits, layout, logs, parquet, stages, timings
from store.commits import Record

States = Callable[[], Mapping[str, str] | None]  # a cluster's jobs: name -> state; None if they are not known

SHOWN = 10  # shards that are listed one by one


def lines_of(root: Path, with_timings: bool, job_states: States = lambda: None) -> list[str]:
    """Return the status of a store as lines of text. `job_states` is asked about shards that a cluster's job began."""
    records = commits.records(root)
    gone = commits.vanished(root, records)
    lines = [f"{len(gone)} commit record(s) that the manifest lists are gone, the first {gone[0]}"] if gone else []
    if not records:
        return lines or [f"{root}: an empty store; nothing is committed yet"]
    events = logs.read(root)
    for run in sorted({r.run for r in records}):
        run_records = [r for r in records if r.run == run]
        run_events = [e for e in events if e.get("run") == run]
        whole = [e for e in run_events if logs.is_complete(e)]
        lines += [f"{run}  fingerprint {run_records[0].fingerprint[:12]}", *_stages(run_records, whole)]
        lines += _in_flight(run_records, whole, job_states)
        lines += _images(root, run_records)
        lines += _processors(run_events)
        lines += timings.table(whole) if with_timings else []
    return lines


@dataclass(frozen=True)
class StageProgress:
    """How far one stage of a run is. `planned` is the number of its shards, None if no process has written it down."""

    name: str
    about: str
    done: int
    planned: int | None
    complete: bool


def progress(root: Path) -> dict[str, list[StageProgress]]:
    """Return how far each stage of each run of a store is, in the order of the stages."""
    records, events = commits.records(root), logs.read(root)
    whole = [e for e in events if logs.is_complete(e)]
    return {
        run: _progress([r for r in records if r.run == run], [e for e in whole if e["run"] == run])
        for run in sorted({r.run for r in records})
    }


def _progress(records: list[Record], events: list[dict[str, Any]]) -> list[StageProgress]:
    done = Counter(r.stage for r in records)
    shards = {(r.stage, r.shard) for r in records}
    planned = {
        str(e["stage"]): sum(int(n) for n in e["phases"])
        for e in events
        if e["event"] == "plan" and isinstance(e["phases"], list)
    }
    found = []
    for stage in stages.STAGES:
        known = planned.get(stage.name)
        complete = (stage.name, stage.last) in shards or stage.consumer in shards
        complete = complete or (not stage.last and done[stage.name] > 0 and done[stage.name] == known)
        found.append(StageProgress(stage.name, stage.about, done[stage.name], known, complete))
    return found


def _stages(records: list[Record], events: list[dict[str, Any]]) -> list[str]:
    lines = []
    for stage in _progress(records, events):
        if stage.done:
            so_far = f"of {stage.planned} so far" if stage.planned is not None else "so far"
            lines.append(f"  {stage.name:10} {stage.done:6} shards {'complete' if stage.complete else so_far}")
    return lines


def _processors(events: list[dict[str, Any]]) -> list[str]:
    """Return the kind of processor that computed the shards, and what it means if there were several."""
    kinds = Counter(str(e["processor"]) for e in events if e["event"] == "done" and "processor" in e)
    if not kinds:
        return []
    listed = ", ".join(f"{kind} ({count} shards)" for kind, count in sorted(kinds.items()))
    several = "; the same bytes are promised on one kind only" if len(kinds) > 1 else ""
    return [f"  processor  {listed}{several}"]


def _in_flight(records: list[Record], events: list[dict[str, Any]], job_states: States) -> list[str]:
    """List the shards that were begun and have no record, with the state in the queue of the job that began each."""
    committed = {(r.stage, r.shard) for r in records}
    last: dict[tuple[str, str], dict[str, Any]] = {}
    for event in events:
        if event["event"] in ("begin", "failed") and (event["stage"], event["shard"]) not in committed:
            last[str(event["stage"]), str(event["shard"])] = event
    if not last:
        return []
    states = job_states() if any("job" in event for event in last.values()) else None
    lines = [f"  {stage:10} {shard}: {_fate(event, states)}" for (stage, shard), event in sorted(last.items())]
    more = [f"             and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
    return lines[:SHOWN] + more


def _fate(event: dict[str, Any], states: Mapping[str, str] | None) -> str:
    process = f"{event.get('node') or event['host']}, pid {event['pid']}"
    if event["event"] == "failed":
        return f"failed on {process}: {str(event['error']).strip().splitlines()[-1]}"
    ago = f"begun {time.time() - float(event['time']):.0f} s ago on {process}"
    if "job" not in event or states is None:
        return ago
    state = states.get(str(event["job"]))
    if state is None:
        return f"{ago}; its job {event['job']} is gone from the queue: lost, it will be resubmitted"
    return f"{ago}; job {event['job']} {state}"


def _images(root: Path, records: list[Record]) -> list[str]:
    index = next((r for r in records if r.stage == "index"), None)
    if index is None:
        return []
    late = {int(i): str(reason) for r in records if r.stage == "scan" for i, reason in r.facts.get("rejected", [])}
    path = root / layout.dataset_table(index.run.partition("@")[2], "images")
    rows = parquet.read(path, ["image_id", "path", "status", "reason"]).to_pylist()
    bad = [
        (r["path"], late.get(r["image_id"]) or r["reason"])
        for r in rows
        if r["status"] == "rejected" or r["image_id"] in late
    ]
    more = [f"    and {len(bad) - 20} more: SELECT path, reason FROM rejected_images"] if len(bad) > 20 else []
    listed = [f"    {path}: {reason}" for path, reason in bad[:20]]
    return [f"  images     {len(rows):6}, {len(bad)} rejected", *listed, *more]
