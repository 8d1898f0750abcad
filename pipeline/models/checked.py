"""Keep what the check of a trace found, from one process to the next, for the networks of torchvision and timm.

Their code follows from their names and versions, so weights of the same digest give the same findings. What a user's
own factory returns can change without a trace in its weights, so it is checked each time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from pipeline.graph import Findings
from store import user_cache

FAMILIES = ("torchvision", "timm")
_PACKAGES = ("torch", "torchvision", "timm")
_FORMATS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}


def folder() -> Path:
    """Return where findings are kept."""
    return user_cache.folder("checked")


def key(source: str, digest: str, input_shape: Sequence[int]) -> str:
    """Return a name for what findings follow from: the model, its weights, all versions, and the code that checks."""
    versions = {}
    for package in _PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            versions[package] = version(package)
    body = [source, digest, list(input_shape), versions, list(sys.version_info), _code()]
    return hashlib.sha256(json.dumps(body).encode()).hexdigest()


def _code() -> str:
    root = Path(__file__).parent.parent
    digest = hashlib.sha256()
    for path in sorted((*root.glob("graph/**/*.py"), *root.glob("compat/*.py"))):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def read(name: str) -> Findings | None:
    """Return the findings kept under a key, or None if there are none or they cannot be read."""
    kept = user_cache.read(folder() / f"{name}.json")
    try:
        memory_format = _FORMATS[kept["memory_format"]]
        return Findings(tuple(map(str, kept["whole"])), bool(kept["in_place"]), memory_format, str(kept["mixing"]))
    except (KeyError, TypeError):
        return None


def write(name: str, findings: Findings) -> None:
    """Keep findings under a key, if the folder can be written."""
    memory_format = next(text for text, kind in _FORMATS.items() if kind == findings.memory_format)
    body = {**asdict(findings), "memory_format": memory_format}
    user_cache.write(folder() / f"{name}.json", body)
