"""A person's SQL in a process of its own, which is killed when its time is over.

DuckDB heeds an interrupt between vectors, not inside one: `md5(repeat('a', 2000000000))`, a constant, runs on for a
quarter of a minute and takes 4 GB that its memory limit does not count. The child opens the store, then gives up the
right to write any file (RLIMIT_FSIZE 0) and to more memory (RLIMIT_AS). Questions and answers are Arrow streams.
"""

from __future__ import annotations

import json
import os
import select
import struct
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import IO, Any

import pyarrow as pa

from query.sql.database import Limits
from store.errors import UsageError

GRACE = 1.0  # seconds that the child's own timer has to stop a query before the child is killed
START = 60.0  # seconds for the child to open the store
_SPARE = 2 << 30  # bytes beside the limits: threads' stacks and what DuckDB does not count
_HEAD = struct.Struct("<?Q")  # whether it is an answer, and its length


class Isolated:
    """Asks a store in a child process, started with the first question and again after a kill, until it is closed."""

    def __init__(self, root: Path, limits: Limits, model_code: bool = False) -> None:
        self._root, self._limits, self._model_code = root, replace(limits, isolated=False), model_code
        self._child: subprocess.Popen[bytes] | None = None
        self._end: weakref.finalize[..., Any] | None = None
        self._closed = False
        self._lock = threading.Lock()

    def table(self, query: str, parameters: Sequence[Any] | None = None) -> pa.Table:
        """Runs one SELECT. Raises UsageError for whatever the child says, or when it had to be killed."""
        question = _question(query, parameters or ())
        with self._lock:
            if self._closed:
                raise UsageError("SQL: the store was closed: open it again")
            try:
                child = self._running()
                began = time.monotonic()
                self._send(child, question)
                answer = self._receive(child, self._limits.seconds + GRACE)
            except BaseException:  # a Ctrl-C among them: whoever asks next must not get this question's answer
                self._stop()
                raise
        if answer is None:
            late = time.monotonic() - began >= self._limits.seconds
            why = f"stopped after {self._limits.seconds:g} s" if late else "not enough memory, or somebody killed it"
            raise UsageError(f"SQL: {why}: ask for less, or allow more")
        good, body = answer
        if not good:
            raise UsageError(body.decode())
        return pa.ipc.open_stream(body).read_all()

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._stop()

    def _stop(self) -> None:
        if self._end is not None:
            self._end()
        self._child = self._end = None

    def _running(self) -> subprocess.Popen[bytes]:
        if self._child is None or self._child.poll() is not None:
            self._stop()
            packages = str(Path(__file__).resolve().parents[2])
            paths = [packages, *filter(None, [os.environ.get("PYTHONPATH")])]
            self._child = subprocess.Popen(
                [sys.executable, "-P", "-m", "query.sql.worker"],  # -P: what lies in the working directory is not code
                stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(paths), "MALLOC_ARENA_MAX": "2"},  # 64 MiB each
            )  # fmt: skip
            self._end = weakref.finalize(self, _end, self._child)
            settings = {"root": str(self._root.resolve()), "code": self._model_code, "limits": asdict(self._limits)}
            self._send(self._child, json.dumps(settings).encode())
            ready = self._receive(self._child, START)
            if ready is None or not ready[0]:
                late = f"{self._root} could not be opened in {START:g} s, or the process that opens it was killed"
                raise UsageError(ready[1].decode() if ready else late)
        return self._child

    def _send(self, child: subprocess.Popen[bytes], body: Any) -> None:
        assert child.stdin is not None
        try:
            child.stdin.write(_HEAD.pack(True, len(body)))
            child.stdin.write(body)
            child.stdin.flush()
        except BrokenPipeError:
            pass  # it died; receiving says so

    def _receive(self, child: subprocess.Popen[bytes], seconds: float) -> tuple[bool, bytes] | None:
        """What the child answers, None where it does not in time or dies: then it is gone."""
        assert child.stdout is not None
        deadline = time.monotonic() + seconds
        head = _read(child.stdout, _HEAD.size, deadline)
        good, length = _HEAD.unpack(head) if head else (False, 0)
        # once an answer begins it is only copied, which takes a time of its own
        body = _read(child.stdout, length, time.monotonic() + START) if head else None
        if body is None:
            self._stop()
            return None
        return good, body


def _end(child: subprocess.Popen[bytes]) -> None:
    child.kill()
    child.wait()
    for pipe in (child.stdin, child.stdout):
        assert pipe is not None
        pipe.close()


def _question(query: str, parameters: Sequence[Any]) -> Any:
    """One row, a column for each parameter; the query stands in the schema's metadata."""
    try:
        columns = {str(i): pa.array([value]) for i, value in enumerate(parameters)}
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise UsageError(f"SQL: a parameter is no value of a database: {error}") from None
    try:
        return _stream(pa.table(columns).replace_schema_metadata({"query": query}))
    except (TypeError, UnicodeError) as error:
        raise UsageError(f"SQL: the query is no text: {error}") from None


def _stream(table: pa.Table) -> Any:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def _read(pipe: IO[bytes], size: int, deadline: float) -> bytes | None:
    pieces, left = [], size
    while left:
        if not select.select([pipe], [], [], max(deadline - time.monotonic(), 0))[0]:
            return None
        piece = os.read(pipe.fileno(), min(left, 1 << 20))
        if not piece:
            return None
        pieces.append(piece)
        left -= len(piece)
    return b"".join(pieces)


def confine(limits: Limits) -> None:
    """From here on this process writes no file and takes no more memory than the limits and a reserve."""
    import resource

    status = Path("/proc/self/statm")
    used = int(status.read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE") if status.exists() else 0
    for what, most in (
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_AS, used + limits.memory + limits.answer + _SPARE),
    ):
        hard = resource.getrlimit(what)[1]
        limit = most if hard == resource.RLIM_INFINITY else min(most, hard)
        try:
            resource.setrlimit(what, (limit, limit))
        except (ValueError, OSError):  # macOS has no limit of address space
            continue


def main() -> None:
    """The child: settings, then questions, on standard input; answers on standard output."""
    source, out = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever prints, prints elsewhere
    if (body := _next(source)) is None:
        return
    settings = json.loads(body)
    from query.scope import Scope

    limits = Limits(**settings["limits"])
    try:
        scope = Scope(settings["root"], model_code=settings["code"], limits=limits)
    except UsageError as error:
        _answer(out, False, str(error).encode())
        return
    confine(limits)
    _answer(out, True, b"")
    while (body := _next(source)) is not None:
        try:
            question = pa.ipc.open_stream(body).read_all()
            parameters = [column[0].as_py() for column in question.columns]
            table = scope.sql(question.schema.metadata[b"query"].decode(), parameters or None).arrow()
            _answer(out, True, _stream(table))
        except UsageError as error:
            _answer(out, False, str(error).encode())
        except (MemoryError, pa.ArrowMemoryError):
            _answer(out, False, b"SQL: not enough memory: ask for less at a time, or allow more")


def _next(source: IO[bytes]) -> bytes | None:
    head = source.read(_HEAD.size)
    return source.read(_HEAD.unpack(head)[1]) if len(head) == _HEAD.size else None


def _answer(out: IO[bytes], good: bool, body: Any) -> None:
    out.write(_HEAD.pack(good, len(body)))
    out.write(body)
    out.flush()


if __name__ == "__main__":
    main()
