"""The machine a worker runs on: device, threads and the C library's allocator."""

from __future__ import annotations

import ctypes
import os
import sys

import torch

from store.errors import UsageError

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def resolve_device(wanted: str) -> str:
    """ "auto" becomes cuda where there is one, else cpu."""
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if wanted == "cuda" and not torch.cuda.is_available():
        raise UsageError('[compute] device = "cuda": torch sees no GPU here; use "cpu" or "auto"')
    return wanted


def threads_of_worker(threads: int, workers: int) -> int:
    """0 means the cores this process may use, shared out among the workers."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return threads or max(cores // workers, 1)


def set_up(threads: int) -> None:
    """Threads for torch and numba, and memory that is kept.

    glibc hands every large tensor back to the system and faults its pages in again: keeping them made the eager forward
    pass 2.4 times faster. Benchmarks give the same to both sides.
    """
    keep_memory()
    torch.set_num_threads(threads)
    import numba

    numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))


def keep_memory() -> None:
    if not sys.platform.startswith("linux"):
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, "gnu_get_libc_version"):
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
        libc.mallopt(_M_TOP_PAD, 64 << 20)
