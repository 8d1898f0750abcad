"""A real Slurm with three nodes on one machine: a task is killed, a node is lost and the controller is restarted."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from support import faults
from support.sharing import shared_folder

from store import logs

DAEMONS = ("slurmctld", "slurmd", "munged", "sbatch")
missing = [name for name in DAEMONS if not shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")]
pytestmark = pytest.mark.skipif(
    bool(missing) or os.geteuid() != 0,
    reason=f"no Slurm to start here ({', '.join(missing) or 'it needs root'}): apt-get install slurmctld slurmd "
    "slurm-client munge",
)


@dataclass(frozen=True)
class Slurm:
    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        path = f"{os.environ['PATH']}:/usr/sbin"
        return faults.environment(SLURM_CONF=str(self.folder / "etc" / "slurm.conf"), PATH=path)

    def call(self, *words: str) -> str:
        return subprocess.run(words, env=self.environment, capture_output=True, text=True, check=True).stdout

    def pid(self, name: str) -> int:
        return int((self.folder / "run" / f"{name}.pid").read_text())

    def kill_node(self, event: dict[str, Any]) -> list[int]:
        """Kill a node's daemon, the step that holds the task, and the task with SIGKILL, as in a power failure."""
        step = int(Path(f"/proc/{event['pid']}/stat").read_text().rpartition(")")[2].split()[1])
        os.kill(self.pid(f"slurmd-{event['node']}"), signal.SIGKILL)
        os.kill(step, signal.SIGKILL)
        return faults.kill_now([event["pid"]])

    def restart_controller(self) -> None:
        """Kill the controller with SIGKILL once it has saved its state, and start it again.

        It saves its state within 5 s of a change. Slurm would hold jobs of whose start the saved state knows nothing
        ("launch failed requeued held") until a person releases them.
        """
        saved, now = self.folder / "state" / "job_state", time.time()
        while not (saved.exists() and saved.stat().st_mtime > now):
            time.sleep(0.05)
            assert time.time() < now + 60, "the controller did not save its state"
        faults.kill_now([self.pid("slurmctld")])
        self.call("slurmctld")


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    for attempt in range(3):  # its ports are chosen at random and may be taken
        made = Slurm(tmp_path_factory.mktemp(f"slurm{attempt}"))
        started = subprocess.run(
            [faults.ROOT / "tests" / "slurm" / "start.sh", made.folder, "3"],
            env=made.environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if started.returncode == 0:
            yield made
            subprocess.run([faults.ROOT / "tests" / "slurm" / "stop.sh", made.folder], check=True)
            return
        subprocess.run([faults.ROOT / "tests" / "slurm" / "stop.sh", made.folder], check=True)
    pytest.fail(f"Slurm did not start: {started.stderr}")


def test_a_task_a_node_and_the_controller_are_lost(slurm: Slurm, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = shared_folder(tmp_path_factory, "faults")
    wanted = faults.undisturbed(folder)
    store = tmp_path_factory.mktemp("run") / "store"
    env = slurm.environment
    submitted = subprocess.run(
        [*faults.COMMAND, "slurm", folder / "faults.toml", "--store", store, "--array", "3" if faults.FULL else "2"],
        cwd=faults.ROOT, env=env, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "chain 1" in submitted.stdout
    by_task = faults.kill_in_flight(store, "scan", lambda event: faults.kill_now([event["pid"]]))
    lost = [e for e in faults.in_flight(store, "scan") if not faults.alive(e["pid"])]
    slurm.restart_controller()
    by_node = faults.kill_in_flight(store, "visualize", slurm.kill_node)
    _wait_for_the_end(slurm, store)
    assert faults.digests(store) == wanted
    assert faults.run_twice(store) == by_task | by_node
    assert {e["engine"] for e in logs.read(store) if e["event"] == "begin"} == {"slurm"}
    assert lost


def _wait_for_the_end(slurm: Slurm, store: Path) -> None:
    deadline = time.monotonic() + faults.PATIENCE
    while time.monotonic() < deadline:
        if list(store.glob("commits/*/visualize/finish.json")) and not slurm.call("squeue", "--noheader").strip():
            return
        time.sleep(0.5)
    out = "\n".join(p.read_text()[-500:] for p in sorted(store.glob("logs/slurm/*.out")))
    raise AssertionError(f"the chain did not end:\n{slurm.call('squeue')}\n{slurm.call('sinfo', '-N')}\n{out}")
