"""Objectives between the pictures of a batch: alike where they are neighbours, or unlike each other."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.featurevis.objectives.objective import Activations, Objective, called
from store.errors import UsageError

REACH = 4  # neighbours this far apart are drawn together


def alignment(layer: str, decay_ratio: float = 2) -> Objective:
    """Negative: the mean squared difference at `layer` of pictures d = 1 to 4 apart, over decay_ratio ** d. Half of a
    pair's goes to each of the two. Added to an interpolation, it keeps like things in the same place."""

    def measure(T: Activations) -> Tensor:
        x = T(layer)
        total = x.new_zeros(len(x))
        for distance in range(1, min(REACH, len(x) - 1) + 1):
            pair = (x[distance:] - x[:-distance]).square().mean((1, 2, 3)) / decay_ratio**distance / 2
            total = total - F.pad(pair, (distance, 0)) - F.pad(pair, (0, distance))
        return total

    return Objective((layer,), called("alignment", layer), measure, mixes=True)


def diversity(layer: str, group: int | None = None) -> Objective:
    """How alike a picture's style is to the others' of its group, to be subtracted: the sum of the cosines between its
    Gram matrix at `layer` and theirs. `group`: pictures that follow each other (all of the batch where None)."""

    def measure(T: Activations) -> Tensor:
        x = T(layer)
        size = group or len(x)
        if len(x) % size:
            raise UsageError(f"diversity: a batch of {len(x)} is not made of groups of {size}")
        flat = x.flatten(2)
        grams = torch.stack([one @ one.T for one in flat]).flatten(1)
        unit = F.normalize(grams, dim=1).unflatten(0, (-1, size))
        rest = unit.sum(1, keepdim=True) - unit
        return (unit * rest).sum(2).flatten()

    text = called("diversity", layer) if group is None else called("diversity", layer, group)
    return Objective((layer,), text, measure, mixes=True)
