"""Tell the C library's allocator to keep the memory of large tensors, or to give it back."""

from __future__ import annotations

import ctypes
import gc
import os
import sys

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -4, -8


def keep_memory() -> None:
    """Make glibc keep freed memory instead of returning it to the system and faulting its pages in again.

    This made the eager forward pass 2.4 times faster. Benchmarks call it for both sides of a comparison. With
    UNITSCOPE_KEEP_MEMORY=0 in the environment it only forbids further arenas, for processes that also do other things:
    the memory of their largest computation then returns to the system.
    """
    if not sys.platform.startswith("linux"):
        return
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "gnu_get_libc_version"):
        return
    libc.mallopt(_M_ARENA_MAX, 1)  # other arenas cannot hold large tensors, and each keeps some memory of its own
    if os.environ.get("UNITSCOPE_KEEP_MEMORY") != "0":
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
        libc.mallopt(_M_TOP_PAD, 64 << 20)


def give_back() -> None:
    """Free what nothing refers to any more, and return free memory to the system as far as the C library can.

    Traced networks are circles of references, which Python frees late. It takes some tenths of a second.
    """
    gc.collect()
    if os.name == "posix" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)
