"""Objectives that compare the pictures of a batch: how alike neighbours are, or all the pictures of a group."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.featurevis.objectives.objective import Activations, Objective, called
from store.errors import UsageError

REACH = 4  # pictures up to this far apart in the batch are made alike


def alignment(layer: str, decay_ratio: float = 2) -> Objective:
    """Measure how alike pictures at a distance d of 1 to 4 in the batch are. Add it.

    It is minus the sum over d of their mean squared difference at `layer`, divided by decay_ratio ** d. Half of a
    pair's difference counts for each of the two. In an interpolation it keeps similar things at the same positions.
    """

    def measure(T: Activations) -> Tensor:
        x = T(layer)
        total = x.new_zeros(len(x))
        for distance in range(1, min(REACH, len(x) - 1) + 1):
            pair = (x[distance:] - x[:-distance]).square().mean((1, 2, 3)) / decay_ratio**distance / 2
            total = total - F.pad(pair, (distance, 0)) - F.pad(pair, (0, distance))
        return total

    return Objective((layer,), called("alignment", layer), measure, mixes=True)


def diversity(layer: str, group: int | None = None) -> Objective:
    """Measure how alike a picture's style is to that of the others in its group. Subtract it to make them differ.

    It is the sum of the cosines between the picture's Gram matrix at `layer` and those of the others. `group`: the
    number of consecutive pictures in a group, by default the whole batch.
    """

    def measure(T: Activations) -> Tensor:
        x = T(layer)
        size = group or len(x)
        if len(x) % size:
            raise UsageError(f"diversity: a batch of {len(x)} is not made of groups of {size}")
        flat = x.flatten(2)
        grams = torch.stack([maps @ maps.T for maps in flat]).flatten(1)
        unit = F.normalize(grams, dim=1).unflatten(0, (-1, size))
        rest = unit.sum(1, keepdim=True) - unit
        return (unit * rest).sum(2).flatten()

    text = called("diversity", layer) if group is None else called("diversity", layer, group)
    return Objective((layer,), text, measure, mixes=True)
