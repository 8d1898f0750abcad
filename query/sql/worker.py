"""A person's SQL in a child process, which is killed when its time is over.

DuckDB notices an interrupt between vectors, not inside one: `md5(repeat('a', 2000000000))`, a constant, runs on for 15
seconds and takes 4 GB that DuckDB's memory limit does not count. Only killing a process stops that. The child is
query/sql_child.py. Questions and answers are Arrow streams, each behind a head of fixed size.
"""

from __future__ import annotations

import contextlib
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
_HEAD = struct.Struct("<?Q")  # whether the body is an answer (else an error's text), and its length in bytes


class SqlWorker:
    """Ask a store in a child process. The child starts with the first question, and again if it was killed."""

    def __init__(self, root: Path, limits: Limits, model_code: bool = False) -> None:
        self._root, self._limits, self._model_code = root, replace(limits, isolated=False), model_code
        self._child: subprocess.Popen[bytes] | None = None
        self._end: weakref.finalize[..., Any] | None = None
        self._closed = False
        self._lock = threading.Lock()

    def table(self, query: str, parameters: Sequence[Any] | None = None) -> pa.Table:
        """Run one SELECT. Raises UsageError with what the child says, or why it had to be killed."""
        question = _question(query, parameters or ())
        with self._lock:
            if self._closed:
                raise UsageError("SQL: the store was closed: open it again")
            try:
                child = self._running()
                began = time.monotonic()
                self._send(child, question)
                answer = self._receive(child, self._limits.seconds + GRACE)
            except BaseException:  # Ctrl-C too: the next question must not get this question's answer
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
                # -P keeps the working directory off sys.path: no file that lies there is imported
                [sys.executable, "-P", "-m", "query.sql_child"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                # each malloc arena reserves 64 MiB of address space, which RLIMIT_AS counts
                env=os.environ | {"PYTHONPATH": os.pathsep.join(paths), "MALLOC_ARENA_MAX": "2"},
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
        with contextlib.suppress(BrokenPipeError):  # the child died, and _receive says so
            write_message(child.stdin, True, body)

    def _receive(self, child: subprocess.Popen[bytes], seconds: float) -> tuple[bool, bytes] | None:
        """Return what the child answers. If it dies or takes too long, kill it and return None."""
        assert child.stdout is not None
        deadline = time.monotonic() + seconds
        head = _read(child.stdout, _HEAD.size, deadline)
        good, length = _HEAD.unpack(head) if head else (False, 0)
        # Once an answer begins it only has to be copied, which is given a time of its own.
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
        with contextlib.suppress(OSError):  # what was not sent yet has nobody to read it
            pipe.close()


def _question(query: str, parameters: Sequence[Any]) -> Any:
    """Encode a table of one row, with one column per parameter. The query is in the schema's metadata."""
    try:
        columns = {str(i): pa.array([value]) for i, value in enumerate(parameters)}
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise UsageError(f"SQL: a parameter is no value of a database: {error}") from None
    try:
        return stream(pa.table(columns).replace_schema_metadata({"query": query}))
    except (TypeError, UnicodeError) as error:
        raise UsageError(f"SQL: the query is no text: {error}") from None


def _read(pipe: IO[bytes], size: int, deadline: float) -> bytes | None:
    """Read exactly `size` bytes, or return None at the deadline or the end of the pipe."""
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


def stream(table: pa.Table) -> Any:
    """Return a table as the bytes of an Arrow stream."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def read_message(source: IO[bytes]) -> bytes | None:
    """Read the body of the next message, or return None at the end of the pipe."""
    head = source.read(_HEAD.size)
    return source.read(_HEAD.unpack(head)[1]) if len(head) == _HEAD.size else None


def write_message(out: IO[bytes], good: bool, body: Any) -> None:
    """Write one message. `good` is False for an error, whose body is its text."""
    out.write(_HEAD.pack(good, len(body)))
    out.write(body)
    out.flush()
