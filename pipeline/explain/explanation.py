"""Explain why a network gives a picture one class and not another, by the positions, units and groups of one layer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.explain.attribution import ablated, attribute, replaced
from pipeline.explain.groups import Groups, neuron_groups
from pipeline.explain.suffix import Suffix, Target


@dataclass(frozen=True)
class Explanation:
    """What a layer adds to the logit of a class, or to that of a class minus that of another, on one picture.

    `logits` float32 [classes]. `against` is None for the logit alone. `score` is what is explained, `baseline_score`
    the same with the layer at its baseline, and `elsewhere` what is added by values that are at no position (class
    tokens). `residue` is what all attributions add up to, minus score - baseline_score; `complete` says whether it is
    within 1 %. `activations`, `attributions` float32 [C, H, W]. `ablations` maps units to the fall of the score when
    the unit is set to its baseline everywhere. `groups` has the picture's neuron groups over H * W positions;
    `group_attributions`, `group_ablations` float64 [K] say what each adds: the mean gradient times the group's part,
    and the fall of the score when this part is taken away.
    """

    layer: str
    method: str
    target: int
    against: int | None
    logits: NDArray[np.float32]
    score: float
    baseline_score: float
    elsewhere: float
    residue: float
    complete: bool
    steps: int
    activations: NDArray[np.float32]
    attributions: NDArray[np.float32]
    ablations: dict[int, float]
    groups: Groups
    group_attributions: NDArray[np.float64]
    group_ablations: NDArray[np.float64]

    @property
    def by_position(self) -> NDArray[np.float32]:
        """What each position adds, over all units: float32 [H, W]."""
        total: NDArray[np.float32] = self.attributions.sum(0, dtype=np.float64).astype(np.float32)
        return total

    @property
    def by_unit(self) -> NDArray[np.float32]:
        """What each unit adds, over all positions: float32 [C]."""
        total: NDArray[np.float32] = self.attributions.sum((1, 2), dtype=np.float64).astype(np.float32)
        return total


def explain(
    suffix: Suffix,
    pixels: NDArray[np.uint8],
    target: int,
    against: int | None = None,
    method: str = "integrated",
    baseline: NDArray[np.float32] | None = None,
    groups: int = 6,
    ablate: int = 8,
    most_steps: int | None = None,
) -> Explanation:
    """Explain one picture, uint8 [channels, H, W].

    baseline: float32 [C], one value a unit; zero by default. `groups`: how many neuron groups to look for.
    `ablate`: so many units with the highest attributions, and with the lowest, are ablated as well. `most_steps`: see
    `attribute`.
    """
    state = suffix.state(torch.from_numpy(pixels[None]))
    one = torch.zeros(1, dtype=torch.int64)
    aim = Target(one + target, None if against is None else one + against)
    low = None if baseline is None else torch.from_numpy(baseline)
    found = attribute(suffix, state, aim, method, low, most_steps=most_steps)
    with torch.no_grad():
        logits = suffix.logits(state, state.value, one)[0]
    activations = suffix.map(state.value)[0].numpy().astype(np.float32)
    channels, height, width = activations.shape
    factored = neuron_groups(activations.reshape(channels, -1).T, groups, suffix.layer.signed)
    parts = np.array([factored.part(k).T for k in range(len(factored.loadings))], np.float32)
    parts = parts.reshape(-1, channels, height, width)
    gradient = found.gradient[0].double().numpy()
    by_unit = found.values[0].double().sum((1, 2)).numpy()
    order = np.argsort(-by_unit, kind="stable")
    chosen = np.unique(np.concatenate([order[:ablate], order[len(order) - min(ablate, len(order)) :]]))
    masks = torch.zeros(len(chosen), channels, 1, 1, dtype=torch.bool)
    masks[torch.arange(len(chosen)), torch.from_numpy(chosen)] = True
    falls = ablated(suffix, state, aim, 0, masks, low).numpy()
    without = torch.from_numpy(activations[None] - parts)
    return Explanation(
        layer=suffix.layer.name,
        method=method,
        target=target,
        against=against,
        logits=logits.numpy(),
        score=float(found.score[0]),
        baseline_score=float(found.baseline_score[0]),
        elsewhere=float(found.elsewhere[0]),
        residue=float(found.residue[0]),
        complete=bool(found.complete[0]),
        steps=int(found.steps[0]),
        activations=activations,
        attributions=found.values[0].numpy(),
        ablations=dict(zip(chosen.tolist(), falls.tolist(), strict=True)),
        groups=factored,
        group_attributions=np.einsum("chw,kchw->k", gradient, parts),
        group_ablations=replaced(suffix, state, aim, 0, without).numpy(),
    )
