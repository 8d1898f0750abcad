"""The kind of processor that a process computes on: what torch and oneDNN choose their kernels by."""

from __future__ import annotations

import functools
import os
import platform
from pathlib import Path

import torch

_LIMITS = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")  # environment variables that hold oneDNN back


@functools.cache
def processor_kind() -> str:
    """Return the kind of this processor, such as "x86_64 AVX512 AMX".

    It names the architecture, the instruction set of torch's own kernels, AMX if there is any, and a limit that the
    environment sets for oneDNN. Equal fingerprints give the same bytes on equal kinds.
    """
    parts = [platform.machine(), torch.backends.cpu.get_cpu_capability()]
    parts += ["AMX"] if "amx_tile" in _flags() else []
    limit = next((os.environ[name] for name in _LIMITS if os.environ.get(name)), "")
    parts += [f"(oneDNN up to {limit})"] if limit else []
    return " ".join(parts)


def _flags() -> frozenset[str]:
    """Return the processor's flags as Linux lists them, or none elsewhere."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    flags = next((line.partition(":")[2] for line in lines if line.startswith(("flags", "Features"))), "")
    return frozenset(flags.split())
