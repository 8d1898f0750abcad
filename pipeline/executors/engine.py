"""The interface through which the scheduler uses an engine."""

from __future__ import annotations

from typing import Protocol

from pipeline.executors.worker import Outcome, Task


class Engine(Protocol):
    """Something that runs tasks and reports their outcomes."""

    def slots(self, stage: str) -> int:
        """Return how many tasks of a stage can run at the same time. It may change as a cluster grows or shrinks."""

    def capacity(self, stage: str) -> int:
        """Return how many tasks of a stage may be submitted at most, running or queued."""

    def submit(self, task: Task) -> None: ...

    def wait(self, seconds: float) -> list[Outcome]:
        """Wait at most `seconds` for outcomes, and return those that came in."""

    def drop(self, task: Task) -> None:
        """Stop a task whose outcome is no longer wanted. Its outcome is never reported."""

    def close(self) -> None:
        """Stop all tasks that still run."""
