"""A map over threads that keeps the order of its items."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from pipeline.runtime.timing import propagate_timing

T = TypeVar("T")
R = TypeVar("R")


def ordered_map(
    function: Callable[[T], R], items: Iterable[T], threads: int, pool: ThreadPoolExecutor | None = None
) -> Iterator[R]:
    """Yield `function(item)` in the order of `items`, computing `threads` of them at a time.

    The function runs in new threads, or in those of a shared `pool`. Without a pool and with one thread, it runs in the
    calling thread. Items are drawn only shortly before they are needed.
    """
    if pool is not None:
        yield from _in_pool(function, items, threads, pool)
    elif threads <= 1:
        yield from map(function, items)
    else:
        with ThreadPoolExecutor(threads) as own:
            yield from _in_pool(function, items, threads, own)


def _in_pool(function: Callable[[T], R], items: Iterable[T], threads: int, pool: ThreadPoolExecutor) -> Iterator[R]:
    function = propagate_timing(function)
    waiting: deque[Future[R]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()
