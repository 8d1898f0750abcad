"""Questions by address, in a process of their own: a slow one delays no page, and is stopped when its time is over."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import threading
from collections.abc import Sequence
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from query.web.errors import PageError
from store.errors import UsageError

SECONDS = 60.0  # for one answer
START = 60.0  # to open the store

Given = Sequence[tuple[str, str]]


class QuestionProcess:
    """Ask declared questions one at a time. The process starts with the first, and again after one was stopped."""

    def __init__(self, root: Path, seconds: float = SECONDS) -> None:
        self._root, self._seconds = root, seconds
        self._lock = threading.Lock()
        self._running: tuple[BaseProcess, Connection] | None = None

    def ask(self, name: str, given: Given) -> list[dict[str, Any]]:
        """Return the rows of an answer. Raises PageError, also if the time is over or the process died."""
        with self._lock:
            _, pipe = self._running or self._started()
            try:
                pipe.send((name, list(given)))
                if not pipe.poll(self._seconds):
                    raise PageError(503, f"this question took longer than {self._seconds:g} s: ask for less")
                status, body = pipe.recv()
            except (OSError, EOFError):
                self.close()
                raise PageError(503, "this question took too much memory, or somebody stopped it") from None
            except PageError:
                self.close()
                raise
        if status != 200:
            raise PageError(status, body)
        rows: list[dict[str, Any]] = body
        return rows

    def close(self) -> None:
        if self._running is not None:
            process, pipe = self._running
            process.kill()
            process.join()
            pipe.close()
            self._running = None

    def _started(self) -> tuple[BaseProcess, Connection]:
        context = multiprocessing.get_context("spawn")  # a fork would copy locks that other threads hold
        pipe, its_own = context.Pipe()
        process = context.Process(target=_answer_for_ever, args=(self._root, its_own), daemon=True)
        process.start()
        its_own.close()
        self._running = process, pipe
        return self._running


def _answer_for_ever(root: Path, pipe: Connection) -> None:
    """Answer until the pipe is closed. Each answer is a status and rows, or the text of an error."""
    from query.web import openapi
    from query.web.site import Site

    with contextlib.suppress(OSError, AttributeError):
        os.nice(10)  # pages go first
    site: Site | None = None
    with contextlib.suppress(EOFError, KeyboardInterrupt):
        while True:
            name, given = pipe.recv()
            try:
                site = site or Site(root)
                pipe.send((200, openapi.answer(site.scope, name, given)))
            except PageError as error:
                pipe.send((error.status, str(error)))
            except UsageError as error:
                pipe.send((openapi.status_of(error), str(error)))
