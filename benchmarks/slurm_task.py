"""The cost of a task of a Slurm array besides its shards, measured on a one-node Slurm that is started here.

If Slurm cannot be started on this machine, nothing is measured.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from pipeline.config import to_toml
from store import logs

ROOT = Path(__file__).parent.parent
TASKS = 3


def seconds_of_a_task(config: Mapping[str, Mapping[str, object]]) -> float | str:
    """Return the median seconds from sbatch to a task's end, without the shard's own; or why they were not measured."""
    if os.geteuid() or not shutil.which("slurmctld", path="/usr/sbin:/usr/local/sbin"):
        return "no Slurm to start here"
    with tempfile.TemporaryDirectory(prefix="unitscope-slurm-") as folder:
        home = Path(folder)
        env = {**os.environ, "SLURM_CONF": str(home / "etc" / "slurm.conf"), "PYTHONPATH": str(ROOT)}
        env["PATH"] += ":/usr/sbin"
        start, stop = (ROOT / "tests" / "slurm" / name for name in ("start.sh", "stop.sh"))
        started = subprocess.run([start, home, "1"], env=env, capture_output=True, text=True, check=False)
        try:
            if started.returncode:
                return started.stderr.strip().splitlines()[-1]
            return statistics.median(_task(home, env, config, number) for number in range(TASKS))
        finally:
            subprocess.run([stop, home], check=False)


def _task(home: Path, env: dict[str, str], config: Mapping[str, Mapping[str, object]], number: int) -> float:
    """Submit one task that scans one shard. Returns the seconds from sbatch to its end, without the shard's own."""
    store, file = home / f"store{number}", home / "scaling.toml"
    file.write_text(to_toml(config))
    command = [sys.executable, "-m", "unitscope", "run", str(file), "--store", str(store)]
    subprocess.run([*command, "--stage", "index", "--stage", "calibrate"], env=env, cwd=ROOT, check=True,
                   capture_output=True)  # fmt: skip
    wrapped = " ".join([*command, "--stage", "scan", "--shard", "0/1"])
    began = time.perf_counter()
    subprocess.run(["sbatch", "--wait", f"--chdir={ROOT}", f"--output={home}/%j.out", "--wrap", f"exec {wrapped}"],
                   env=env, check=True, capture_output=True)  # fmt: skip
    passed = time.perf_counter() - began
    return passed - sum(e["seconds"] for e in logs.read(store) if e["event"] == "done" and e["stage"] == "scan")
