"""Devices, number types and threads of a process."""

from __future__ import annotations

import os

import torch

from pipeline.runtime.allocator import keep_memory
from store.errors import UsageError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

# oneDNN keeps 1,024 compiled kernels by default. Visualization runs some fifty convolutions at a dozen canvas sizes,
# forward and backward, and needs more.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "8192")


def resolve_device(wanted: str) -> str:
    """Return "cpu" or "cuda" for a config's device. "auto" is "cuda" if there is a GPU.

    Raises UsageError for "cuda" if torch sees no GPU.
    """
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if wanted == "cuda" and not torch.cuda.is_available():
        raise UsageError('[compute] device = "cuda": torch sees no GPU here; use "cpu" or "auto"')
    return wanted


def threads_of_worker(threads: int, workers: int) -> int:
    """Return the number of threads of one worker; 0 means the cores that this process may use, divided by workers.

    Under Slurm they are at most the cores that Slurm gave: without cgroups it does not bind a task to these.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    given = os.environ.get("SLURM_CPUS_PER_TASK") or os.environ.get("SLURM_CPUS_ON_NODE") or ""
    cores = min(cores, int(given)) if given.isdigit() and int(given) else cores
    return threads or max(cores // workers, 1)


def set_up() -> None:
    """Prepare this process for computing: keep freed memory, and run each operation on one thread.

    Instead, a worker runs whole batches side by side (`ordered_map`). Results then have the same bits for any number of
    threads, although oneDNN divides small batches by the number of threads. Threads also never spin at each other's
    barriers: with one other busy process on the machine, that made the forward pass five times faster.
    """
    keep_memory()
    torch.set_num_threads(1)
