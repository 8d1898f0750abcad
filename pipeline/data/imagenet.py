"""ImageNet's thousand classes: labels come with torchvision, synsets with timm."""

from __future__ import annotations

import functools
import re

from store.errors import UsageError

IMAGENET = "imagenet-1k"
SYNSET = re.compile(r"n\d{8}")


@functools.cache
def imagenet_labels() -> tuple[str, ...]:
    """The 1000 short English labels in the standard order; two of them stand twice (crane, maillot)."""
    from torchvision.models import ResNet18_Weights

    return tuple(ResNet18_Weights.DEFAULT.meta["categories"])


@functools.cache
def imagenet_synsets() -> tuple[str, ...]:
    """The 1000 WordNet ids in the standard order."""
    try:
        from timm.data import ImageNetInfo
    except ImportError:
        raise UsageError(
            "folders are ImageNet synsets, whose order comes with timm: pip install 'unitscope[timm]'"
        ) from None
    return tuple(ImageNetInfo("imagenet-1k").label_names())
