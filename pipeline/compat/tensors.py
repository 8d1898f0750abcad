"""The counter by which torch knows that a tensor was changed in place."""

from __future__ import annotations

from torch import Tensor


def writes(x: Tensor) -> int:
    """Return how often a tensor, or one that it shares memory with, was changed in place; 0 if torch does not say."""
    try:
        return int(getattr(x, "_version", 0))
    except RuntimeError:  # tensors made in inference mode have no counter
        return 0
