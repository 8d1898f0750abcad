"""Where a shard's time goes: seconds by phase, counted in whichever threads work for it.

`with phase("forward"): ...` counts for the shard that the calling thread works for (`counting`). The time of a phase
inside another is taken off the outer one. Thread pools hand the shard on with `propagate_timing`. Clocks are those of
the host: on a GPU, work that is only queued counts where the host first waits for it.
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
    """Thread-seconds by phase: decoding beside the network may add up to more than the wall clock's."""

    def __init__(self) -> None:
        self._seconds = dict.fromkeys(PHASES, 0.0)
        self._lock = threading.Lock()

    def add(self, name: str, seconds: float) -> None:
        with self._lock:
            self._seconds[name] += seconds

    def rounded(self) -> dict[str, float]:
        return {name: round(seconds, 4) for name, seconds in self._seconds.items()}


_counted: contextvars.ContextVar[Seconds | None] = contextvars.ContextVar("counted", default=None)
_inside = threading.local()  # seconds of the phases inside the one that is open in this thread


@contextmanager
def counting() -> Iterator[Seconds]:
    """Phases of this thread, and of what it hands on with `propagate_timing`, count here."""
    seconds = Seconds()
    token = _counted.set(seconds)
    try:
        yield seconds
    finally:
        _counted.reset(token)


@contextmanager
def phase(name: str) -> Iterator[None]:
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
    """The decorator of the same."""

    def wrap(function: Callable[P, T]) -> Callable[P, T]:
        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> T:
            with phase(name):
                return function(*args, **kwargs)

        return call

    return wrap


def propagate_timing(function: Callable[P, T]) -> Callable[P, T]:
    """The function for another thread, where its phases count for the shard that this thread works for."""
    seconds = _counted.get()

    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        token = _counted.set(seconds)
        try:
            return function(*args, **kwargs)
        finally:
            _counted.reset(token)

    return call


def timed_iter(items: Iterable[T]) -> Iterator[T]:
    """The items; drawing one counts as waiting for data."""
    drawn = iter(items)
    while True:
        with phase("wait"):
            try:
                item = next(drawn)
            except StopIteration:
                return
        yield item
