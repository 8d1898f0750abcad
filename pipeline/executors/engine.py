"""What the scheduler asks of an engine."""

from __future__ import annotations

from typing import Protocol

from pipeline.executors.worker import Outcome, Task


class Engine(Protocol):
    def slots(self, stage: str) -> int:
        """Tasks of a stage that run at the same time. May change while a cluster grows or shrinks."""

    def capacity(self, stage: str) -> int:
        """Tasks of a stage to hand over at most, running or next in line: the back-pressure."""

    def submit(self, task: Task) -> None: ...

    def wait(self, seconds: float) -> list[Outcome]:
        """The outcomes that came in, after at most so many seconds."""

    def drop(self, task: Task) -> None:
        """Stops a task whose outcome is no longer wanted; it is never reported."""

    def close(self) -> None:
        """Stops all that still runs."""
