"""The machine a worker runs on: device, threads and the C library's allocator."""

from __future__ import annotations

import ctypes
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

from pipeline.runtime.timing import carried
from store.errors import UsageError

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -4, -8
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def resolve_device(wanted: str) -> str:
    """ "auto" becomes cuda where there is one, else cpu."""
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if wanted == "cuda" and not torch.cuda.is_available():
        raise UsageError('[compute] device = "cuda": torch sees no GPU here; use "cpu" or "auto"')
    return wanted


def threads_of_worker(threads: int, workers: int) -> int:
    """0 means the cores this process may use, shared out among the workers. Under Slurm, those it gave: without
    cgroups it does not bind a task to them."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    given = os.environ.get("SLURM_CPUS_PER_TASK") or os.environ.get("SLURM_CPUS_ON_NODE") or ""
    cores = min(cores, int(given)) if given.isdigit() and int(given) else cores
    return threads or max(cores // workers, 1)


def set_up() -> None:
    """One thread an operation: a worker runs whole batches beside each other instead (`in_order`).

    So results have the same bits on any number of threads (oneDNN cuts small batches by thread), and threads never spin
    at each other's barriers: beside one other busy process that made the forward pass five times faster.
    """
    keep_memory()
    torch.set_num_threads(1)


# Visualization runs some fifty convolutions at a dozen canvas sizes, both ways: oneDNN's own 1,024 kernels are too few.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "8192")

T = TypeVar("T")
R = TypeVar("R")


def in_order(
    function: Callable[[T], R], items: Iterable[T], threads: int, pool: ThreadPoolExecutor | None = None
) -> Iterator[R]:
    """Results of `function` in the order of `items`, `threads` of them computed at a time; items are drawn late.

    In threads of its own, or in those of a `pool` that it shares.
    """
    if pool is not None:
        yield from _in_pool(function, items, threads, pool)
    elif threads <= 1:
        yield from map(function, items)
    else:
        with ThreadPoolExecutor(threads) as own:
            yield from _in_pool(function, items, threads, own)


def _in_pool(function: Callable[[T], R], items: Iterable[T], threads: int, pool: ThreadPoolExecutor) -> Iterator[R]:
    function = carried(function)
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


def keep_memory() -> None:
    """glibc hands every large tensor back to the system and faults its pages in again: keeping them made the eager
    forward pass 2.4 times faster. Benchmarks give the same to both sides."""
    if not sys.platform.startswith("linux"):
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, "gnu_get_libc_version"):
        libc.mallopt(_M_ARENA_MAX, 1)  # other arenas cannot hold large tensors
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
        libc.mallopt(_M_TOP_PAD, 64 << 20)
