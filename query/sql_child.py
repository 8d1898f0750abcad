"""The child process that answers SQL for query/sql/worker.py: `python -m query.sql_child`.

It reads settings and then questions from standard input, and writes answers to standard output. After it has opened the
store it gives up the right to write any file (RLIMIT_FSIZE 0) and to take more memory (RLIMIT_AS).
"""

from __future__ import annotations

import json
import os
import resource
import sys
from pathlib import Path
from typing import IO

import pyarrow as pa

from query.scope import Scope
from query.sql.database import Limits
from query.sql.worker import read_message, stream, write_message
from store.errors import UsageError

_SPARE = 2 << 30  # bytes beside the limits: threads' stacks, and what DuckDB does not count


def confine(limits: Limits) -> None:
    """Forbid this process to write files, and to take more memory than the limits and a reserve."""
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
        except (ValueError, OSError):  # macOS does not limit address space
            continue


def main() -> None:
    """Open the store that the first message names, then answer every message until the input ends."""
    with os.fdopen(os.dup(1), "wb") as out:
        os.dup2(2, 1)  # whatever a library prints goes to standard error, not between the answers
        _answer(sys.stdin.buffer, out)


def _answer(source: IO[bytes], out: IO[bytes]) -> None:
    if (body := read_message(source)) is None:
        return
    settings = json.loads(body)
    limits = Limits(**settings["limits"])
    try:
        scope = Scope(settings["root"], model_code=settings["code"], limits=limits)
    except UsageError as error:
        write_message(out, False, str(error).encode())
        return
    confine(limits)
    write_message(out, True, b"")
    while (body := read_message(source)) is not None:
        try:
            question = pa.ipc.open_stream(body).read_all()
            parameters = [column[0].as_py() for column in question.columns]
            table = scope.sql(question.schema.metadata[b"query"].decode(), parameters or None).arrow()
            write_message(out, True, stream(table))
        except UsageError as error:
            write_message(out, False, str(error).encode())
        except (MemoryError, pa.ArrowMemoryError):
            write_message(out, False, b"SQL: not enough memory: ask for less at a time, or allow more")


if __name__ == "__main__":
    main()
