"""The 1000 classes of ImageNet: their labels come from torchvision, their synsets from timm."""

from __future__ import annotations

import functools
import re

from pipeline.compat import imagenet as compat
from store.errors import UsageError

IMAGENET = "imagenet-1k"
SYNSET = re.compile(r"n\d{8}")


@functools.cache
def imagenet_labels() -> tuple[str, ...]:
    """Return the 1000 short English labels in the standard order. Two labels occur twice: crane and maillot."""
    return compat.labels()


@functools.cache
def imagenet_synsets() -> tuple[str, ...]:
    """Return the 1000 WordNet ids in the standard order. Raises UsageError if timm is not installed."""
    try:
        return compat.synsets()
    except ImportError:
        raise UsageError(
            "the dataset's classes are ImageNet synsets, whose order comes with timm: pip install 'unitscope[timm]'"
        ) from None
