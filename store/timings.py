"""How the time of a store's shards was spent, from its logs."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

PHASES = ("wait", "decode", "forward", "reduce", "write")


def table(events: Sequence[dict[str, Any]]) -> list[str]:
    """Return the lines of a table of one run's events, one row per stage.

    `worker s` is the sum of the shards' wall-clock seconds. Phases are thread-seconds, shown as shares of that sum.
    Decoding runs in parallel with the network, and several batches run in parallel, so shares need not add up to 100 %.
    `wait` is the share of its time that the thread which feeds the network waited for pictures.
    """
    done = [e for e in events if e["event"] in ("done", "overtaken") and isinstance(e["phases"], dict)]
    if not done:
        return ["  no timings: no shard of this run has left a log"]
    lines = [
        f"  {'stage':10} {'shards':>6} {'workers':>7} {'worker s':>9} " + " ".join(f"{p:>8}" for p in PHASES)
        + f" {'a worker':>13} {'median s':>8} {'slowest':>8} {'again':>5}"
    ]  # fmt: skip
    by_stage: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for event in done:
        by_stage[str(event["stage"])].append(event)
    return lines + [_row(stage, finished, _again(events, stage)) for stage, finished in by_stage.items()]


def _row(stage: str, done: list[dict[str, Any]], again: int) -> str:
    seconds = [float(e["seconds"]) for e in done]
    total = sum(seconds) or 1e-9
    shares = [sum(float(e["phases"].get(phase, 0)) for e in done) / total for phase in PHASES]
    workers = len({(e["host"], e["pid"]) for e in done})
    rate = f"{sum(int(e['size']) for e in done) / total:.1f} {done[0]['unit']}/s"
    return (
        f"  {stage:10} {len(done):6} {workers:7} {total:9.1f} " + " ".join(f"{share:8.0%}" for share in shares)
        + f" {rate:>13} {statistics.median(seconds):8.2f} {max(seconds):8.2f} {again:5}"
    )  # fmt: skip


def _again(events: Sequence[dict[str, Any]], stage: str) -> int:
    """Count the shards of a stage that were begun more than once."""
    begun: dict[str, int] = defaultdict(int)
    for event in events:
        if event["event"] == "begin" and event["stage"] == stage:
            begun[str(event["shard"])] += 1
    return sum(count > 1 for count in begun.values())
