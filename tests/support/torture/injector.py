"""The preloaded library of syscalls.c, and processes that are forked to be hit by it."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path

SOURCE = Path(__file__).with_name("syscalls.c")
MODES = ("none", "kill before", "kill after", "torn", "fail once", "fail from", "stop", "lie", "jump")
CRASHED = 70  # exit status of a forked process that ended in a traceback


def compiled() -> Path | None:
    """Return the library, compiled anew if need be; None where there is no compiler or no preloading."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or not sys.platform.startswith("linux"):
        return None
    target = Path(tempfile.gettempdir()) / f"unitscope-faults-{os.getuid()}-{SOURCE.stat().st_mtime_ns}.so"
    if not target.exists():
        made = target.with_suffix(f".{os.getpid()}")
        subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", made, SOURCE, "-ldl"], check=True)
        made.replace(target)
    return target


class Injector:
    """The library in this process, which must have been started with it preloaded."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(os.environ["UNITSCOPE_INJECTOR"])
        self._library.faults_count.restype = ctypes.c_long
        self._library.faults_arm.argtypes = [
            ctypes.c_char_p, ctypes.c_long, ctypes.c_int, ctypes.c_int, ctypes.c_int,
        ]  # fmt: skip

    def arm(self, root: Path, place: int, mode: str, error: int = 0, seconds: int = 0) -> None:
        self._library.faults_arm(os.fsencode(root), place, MODES.index(mode), error, seconds)

    def trace(self, path: Path) -> None:
        self._library.faults_trace(os.fsencode(path))

    def count(self) -> int:
        return int(self._library.faults_count())


def forked(work: Callable[[], object], said: Path) -> int:
    """Run work in a forked process and return its exit status, negative for a signal.

    0: it ended. 2: it ended with an error of one line. CRASHED: it ended in a traceback, which `said` then holds.
    """
    pid = begun(work, said)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def begun(work: Callable[[], object], said: Path) -> int:
    """Begin such a process and return its pid."""
    from store.errors import UsageError

    pid = os.fork()
    if pid:
        return pid
    status = CRASHED
    try:
        with said.open("w") as out:
            os.dup2(out.fileno(), 1)
            os.dup2(out.fileno(), 2)
            try:
                work()
                status = 0
            except (UsageError, OSError) as error:
                text = str(error)
                out.write(text)
                status = 2 if text.strip() and "\n" not in text else CRASHED
            except BaseException:
                traceback.print_exc(file=out)
            out.flush()
    finally:
        os._exit(status)
