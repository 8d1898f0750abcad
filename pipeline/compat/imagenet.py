"""The names of ImageNet's classes, which come with torchvision and timm, read without importing either.

Both packages import torch, which takes seconds; listing a folder of images needs none of it. Their data files are not
documented, so the public names are the fallback.
"""

from __future__ import annotations

import importlib.util
import re
import runpy
from pathlib import Path

CLASSES = 1000
_LABELS = "models/_meta.py"  # in torchvision: a module of plain lists
_SYNSETS = "data/_info/imagenet_synsets.txt"  # in timm: one per line


def labels() -> tuple[str, ...]:
    """Return the 1000 English labels of torchvision in the standard order."""
    file = _file("torchvision", _LABELS)
    if file is not None:
        names = runpy.run_path(str(file)).get("_IMAGENET_CATEGORIES")
        if isinstance(names, list) and len(names) == CLASSES:
            return tuple(names)
    from torchvision.models import ResNet18_Weights

    return tuple(ResNet18_Weights.DEFAULT.meta["categories"])


def synsets() -> tuple[str, ...]:
    """Return the 1000 WordNet ids of timm in the standard order. Raises ImportError if timm is not installed."""
    file = _file("timm", _SYNSETS)
    if file is not None:
        names = tuple(file.read_text(encoding="utf-8").split())
        if len(names) == CLASSES and all(re.fullmatch(r"n\d{8}", name) for name in names):
            return names
    from timm.data import ImageNetInfo

    return tuple(ImageNetInfo("imagenet-1k").label_names())


def _file(package: str, inside: str) -> Path | None:
    """Return a file of an installed package, which is not imported, or None."""
    spec = importlib.util.find_spec(package)
    folders = spec.submodule_search_locations if spec else None
    files = (Path(folder) / inside for folder in folders or ())
    return next((file for file in files if file.is_file()), None)
