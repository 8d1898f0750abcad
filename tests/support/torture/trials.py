"""Trials: one fault each, and what the store must be afterwards."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from store import housekeeping, verify
from store.publish import Publication
from support.torture import small_run
from support.torture.injector import CRASHED, Injector, begun, forked

RUN = "plain@few"
COMMIT = 24  # at least as many system calls as a commit of one file makes
ERRORS = (errno.ENOSPC, errno.EIO, errno.EDQUOT)
# The kinds of faults, each at every so many places. After a system call is before the next one.
PLACES = {"kill before": 1, "torn": 4, "fail once": 1, "fail from": 3, "lie": 1, "jump": 12}
ONLY = {"torn": "write", "lie": "link"}  # kinds that need a certain system call
DAY = 3 * 24 * 3600  # seconds by which a clock jumps
PATIENCE = 60.0  # seconds for a process that was continued


@dataclass(frozen=True)
class Trial:
    """One kind of fault, which happens at the n-th counted system call of a stage."""

    kind: str
    stage: str
    place: int

    def __str__(self) -> str:
        return f"{self.kind} at {self.place} of {self.stage}"


class Bench:
    """What trials need: the stores before and after each stage, the injector, and a folder to work in."""

    def __init__(self, folder: Path, plant: Callable[[], object] = lambda: None) -> None:
        """`plant` changes the code in the processes that are hit, and not in those that look at what they left."""
        self.folder, self.injector, self.plant = folder, Injector(), plant
        self.stages = small_run.snapshots(folder)
        self.wanted = {stage: small_run.digests(after) for stage, (_, after) in self.stages.items()}
        # The names of the counted system calls.
        self.calls = {stage: [call for _, call, *_ in self._traced(stage)] for stage in self.stages}
        self.counts = {stage: len(calls) for stage, calls in self.calls.items()}

    def all(self) -> Iterator[Trial]:
        """Every trial of every kind that means something at its place."""
        for stage, calls in self.calls.items():
            for place, call in enumerate(calls, 1):
                for kind, every in PLACES.items():
                    # Between two writes to one file, a kill leaves what a torn write leaves: half a temporary file.
                    again = kind == "kill before" and call == "write" and calls[place - 2] == "write"
                    if call == ONLY.get(kind, call) and not place % every and not again:
                        yield Trial(kind, stage, place)

    def _traced(self, stage: str) -> list[list[str]]:
        """Run a stage and return its counted system calls: number, name, path, second path."""
        root, trace = self._copy(self.stages[stage][0]), self.folder / f"{os.getpid()}-trace"
        said = self.folder / f"{os.getpid()}-said"
        trace.unlink(missing_ok=True)

        def work() -> None:
            self.plant()
            self.injector.trace(trace)
            self.injector.arm(root, 0, "none")
            small_run.run(self.folder, root, stage)

        assert forked(work, said) == 0, said.read_text()
        return [line.split("\t") for line in trace.read_text().splitlines()]

    def _copy(self, store: Path, name: str = "store") -> Path:
        root = self.folder / f"{os.getpid()}-{name}"
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(store, root)
        return root

    def survives(self, trial: Trial) -> str:
        """Run a trial. Returns what went wrong, or "" if nothing did."""
        before, _ = self.stages[trial.stage]
        root, said = self._copy(before), self.folder / f"{os.getpid()}-said"
        error = ERRORS[trial.place % len(ERRORS)]

        def hit() -> None:
            self.plant()
            self.injector.arm(root, trial.place, trial.kind, error, DAY if trial.place % 2 else -DAY)
            small_run.run(self.folder, root, trial.stage)

        status = forked(hit, said)
        if status not in (0, 2, -signal.SIGKILL):
            return f"exit status {status}: {said.read_text()[-1500:]}"
        fault = self.fault_of(root)
        if fault:
            return f"after exit status {status}, {fault}"
        if status == 0 and trial.kind in ("jump", "lie") and small_run.digests(root) != self.wanted[trial.stage]:
            return "another store than the undisturbed one, with exit status 0"
        return self.recovers(root, trial.stage)

    def fault_of(self, root: Path) -> str:
        """Return what is wrong with committed files: damage that nothing announced."""
        if not (root / "manifest.json").exists():
            return ""
        damage = [p for p in verify.verify(root).problems if p.record is not None]
        return f"silent damage: {damage[0]}" if damage else ""

    def recovers(self, root: Path, stage: str) -> str:
        """Run the stage again, undisturbed, and compare the store with the one that never was disturbed."""
        said = self.folder / f"{os.getpid()}-said"
        if stage == "visualize":  # autograd cannot be used by a process and then by those that it forks
            status = forked(lambda: small_run.run(self.folder, root, stage), said)
            if status:
                return f"when run again, exit status {status}: {said.read_text()[-1500:]}"
        else:
            try:
                small_run.run(self.folder, root, stage)
            except Exception as error:
                return f"when run again, {type(error).__name__}: {error}"
        found, wanted = small_run.digests(root), self.wanted[stage]
        if found != wanted:
            other = sorted(n for n in found.keys() | wanted.keys() if found.get(n) != wanted.get(n))
            return f"when run again, another store: {other[:4]}"
        return ""

    def race(self, stage: str, processes: int, stopped_at: int) -> str:
        """Several processes run one stage; the first is stopped on its way, and goes on when the others have ended."""
        before, _ = self.stages[stage]
        root, said = self._copy(before), self.folder / f"{os.getpid()}-said"

        def run(stop: bool) -> None:
            self.plant()
            if stop:
                self.injector.arm(root, stopped_at, "stop")
            small_run.run(self.folder, root, stage)

        pids = [
            begun(lambda number=number: run(number == 0 and stopped_at > 0), said.with_suffix(f".{number}"))  # type: ignore[misc]
            for number in range(processes)
        ]
        statuses = [_ended(pid) for pid in pids[1:]]
        statuses.append(_ended(pids[0], go_on=True))
        bad = [status for status in statuses if status]
        if bad:
            texts = " | ".join(said.with_suffix(f".{n}").read_text()[-600:] for n in range(processes))
            return f"exit statuses {statuses}: {texts}"
        return self.fault_of(root) or self.recovers(root, stage)

    def loser(self, place: int) -> str:
        """Two processes publish other contents of one shard; the first is stopped in the middle of its commit."""
        last = list(self.stages)[-1]
        root, said = self._copy(self.stages[last][1]), self.folder / f"{os.getpid()}-said"
        table = f"runs/{RUN}/tables/other.parquet"

        def publish(text: str, stopped_at: int) -> None:
            self.plant()
            with Publication(root, RUN, "fold", "other", "f") as out:
                out.path(table).write_text(text)
                self.injector.arm(root, stopped_at, "stop" if stopped_at else "none")
                out.commit()

        first = begun(lambda: publish("one", place), said)
        _, stopped = os.waitpid(first, os.WUNTRACED)
        second = forked(lambda: publish("another", 0), said.with_suffix(".second"))
        ended = _ended(first, go_on=True) if os.WIFSTOPPED(stopped) else os.waitstatus_to_exitcode(stopped)
        if sorted((ended, second)) != [0, 2]:
            return f"exit statuses {ended} and {second}: {said.read_text()[-600:]}"
        return self.fault_of(root)

    def full_disk(self, kilobytes: int) -> str:
        """Run everything in a file system of this size. It ends well, or with one line and nothing lost."""
        mount = self.folder / f"{os.getpid()}-mount"
        mount.mkdir(exist_ok=True)
        said = self.folder / f"{os.getpid()}-said"
        if os.system(f"mount -t tmpfs -o size={kilobytes}k tmpfs {mount} 2>/dev/null"):
            return "not tried: tmpfs cannot be mounted here"
        try:
            status = forked(lambda: (self.plant(), small_run.run(self.folder, mount / "store")), said)
            if status not in (0, 2):
                return f"exit status {status}: {said.read_text()[-1500:]}"
            fault = self.fault_of(mount / "store")
            if fault or status == 0:
                return fault
            root = self._copy(mount / "store")
        finally:
            os.system(f"umount {mount}")
        status = forked(lambda: small_run.run(self.folder, root), said)
        last = list(self.stages)[-1]
        return f"exit status {status}" if status else self.recovers(root, last)

    def order(self, stage: str) -> str:
        """Trace a stage, and check that what becomes visible was synced before, and its folders after."""
        return fault_of_order(self._traced(stage))

    def living_are_left_alone(self) -> str:
        """Housekeeping of one process leaves what another still writes, however far the clock has jumped."""
        last = list(self.stages)[-1]
        root, said = self._copy(self.stages[last][0]), self.folder / f"{os.getpid()}-said"
        first = self.counts[last] // 3
        pid = begun(lambda: self._stopped(root, last, first), said)
        os.waitpid(pid, os.WUNTRACED)
        written = [path for path in root.rglob(".tmp-*~*") if f"~{pid}~" in path.name]

        def clean() -> None:
            self.injector.arm(root, 1, "jump", seconds=DAY)
            (root / "x").touch()
            (root / "x").unlink()
            assert abs(time.time() - (root / "manifest.json").stat().st_mtime) > DAY / 2
            housekeeping.remove_stale_temporaries(root)
            housekeeping.remove_orphans(root, RUN)

        status = forked(clean, said.with_suffix(".clean"))
        lost = [path.name for path in written if not path.exists()]
        os.kill(pid, signal.SIGCONT)
        ended = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if status or lost or ended:
            return f"lost {lost}, exit statuses {status}, {ended}: {said.read_text()[-500:]}"
        return self.recovers(root, last)

    def _stopped(self, root: Path, stage: str, place: int) -> None:
        self.injector.arm(root, place, "stop")
        small_run.run(self.folder, root, stage)


def _ended(pid: int, go_on: bool = False) -> int:
    """Wait for a process. Returns its exit status, or CRASHED if it does not end in time."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if go_on:
            os.kill(pid, signal.SIGCONT)
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return CRASHED


def fault_of_order(calls: list[list[str]]) -> str:
    """Return what is wrong with the order of traced calls [number, call, path, second path], or "".

    A power loss keeps what was synced and may keep anything else. So a file is synced after its last write and before
    it gets its name, a record gets its name after the folders of its files were synced, and its own folder is synced
    after it.
    """
    dirty: set[str] = set()  # files that were written to since they were synced
    unsynced: set[str] = set()  # folders in which a file got its name since they were synced
    for _, call, path, second in calls:
        if call in ("write", "truncate", "create"):
            dirty.add(path)
        elif call == "sync":
            dirty.discard(path)
            unsynced.discard(path)
        elif call in ("rename", "link"):
            target = Path(second)
            announced = ".tmp-" in target.name  # tells living processes, and means nothing after a power loss
            if path in dirty and not announced:
                return f"{target.name} becomes visible before it is synced"
            if target.suffix == ".json" and "commits" in target.parts and not announced and unsynced:
                return f"the record {target.name} becomes visible before the folder {sorted(unsynced)[0]} is synced"
            dirty.discard(path)
            if not announced:
                unsynced.add(str(target.parent))
    return f"the folder {sorted(unsynced)[0]} is never synced" if unsynced else ""
