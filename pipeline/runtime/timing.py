"""Measure where a shard's time goes: seconds by phase, over all threads that work for the shard.

`with phase("forward"): ...` adds to the `Seconds` of the shard that the calling thread works for (see `counting`). The
time of a phase inside another is subtracted from the outer one. `propagate_timing` lets a thread of a pool count for
the same shard. Times are those of the host: work queued on a GPU counts in the phase in which the host waits for it.
"""

from __future__ import annotations

import contextvars
import functools
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

from store.timings import PHASES

P = ParamSpec("P")
T = TypeVar("T")


class Seconds:
    """Seconds by phase, summed over threads. As threads run side by side, the sum may exceed the wall time."""

    def __init__(self) -> None:
        self._seconds = dict.fromkeys(PHASES, 0.0)
        self._lock = threading.Lock()

    def add(self, name: str, seconds: float) -> None:
        with self._lock:
            self._seconds[name] += seconds

    def rounded(self) -> dict[str, float]:
        return {name: round(seconds, 4) for name, seconds in self._seconds.items()}


_counted: contextvars.ContextVar[Seconds | None] = contextvars.ContextVar("counted", default=None)
_inside = threading.local()  # seconds of the phases that ended inside the phase that is open in this thread


@contextmanager
def counting() -> Iterator[Seconds]:
    """Collect the phases of this thread, and of functions that it passes on with `propagate_timing`."""
    seconds = Seconds()
    token = _counted.set(seconds)
    try:
        yield seconds
    finally:
        _counted.reset(token)


@contextmanager
def phase(name: str) -> Iterator[None]:
    """Count the time inside the `with` block for the phase `name`, less that of phases inside it."""
    seconds = _counted.get()
    if seconds is None:
        yield
        return
    outer, _inside.seconds = getattr(_inside, "seconds", 0.0), 0.0
    started = time.perf_counter()
    try:
        yield
    finally:
        passed = time.perf_counter() - started
        seconds.add(name, passed - _inside.seconds)
        _inside.seconds = outer + passed


def timed(name: str) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Return a decorator that counts the whole function for the phase `name`."""

    def wrap(function: Callable[P, T]) -> Callable[P, T]:
        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> T:
            with phase(name):
                return function(*args, **kwargs)

        return call

    return wrap


def propagate_timing(function: Callable[P, T]) -> Callable[P, T]:
    """Wrap a function that runs in another thread: its phases count for the shard that this thread works for."""
    seconds = _counted.get()

    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        token = _counted.set(seconds)
        try:
            return function(*args, **kwargs)
        finally:
            _counted.reset(token)

    return call


def timed_iter(items: Iterable[T]) -> Iterator[T]:
    """Yield the items, counting the time to draw each for the phase "wait"."""
    drawn = iter(items)
    while True:
        with phase("wait"):
            try:
                item = next(drawn)
            except StopIteration:
                return
        yield item
