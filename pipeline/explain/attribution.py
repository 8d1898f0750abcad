"""Attribution: how much each unit at each position of a layer adds to a class logit, or to one class against another.

Sources: gradient x activation (Shrikumar et al. 2016), attribution patching (Nanda 2023), integrated gradients
(Sundararajan et al. 2017, by Gauss-Legendre quadrature), ablation (Zeiler and Fergus 2014).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.explain.suffix import AT_ONCE, State, Suffix, Target
from store.errors import UsageError, unknown

METHODS = ("integrated", "patching", "gradient")
STEPS, MOST_STEPS = 16, 256
COMPLETE = 0.01  # a residue up to this share of what is explained counts as none
ROUNDING = 1e-6  # of a score in float32


@dataclass(frozen=True)
class Attribution:
    """What each value of a layer adds to a score, for N pictures.

    `values` float32 [N, C, H, W]: by unit and position. `gradient` [N, C, H, W]: the (mean) gradient that the values
    come from. `score` and `baseline_score` float64 [N]: the score of the picture, and that with the layer at its
    baseline. `elsewhere` float64 [N]: what is added by values of the node that belong to no position of the layer, such
    as class tokens. `steps` int64 [N]: of integrated gradients; 1 for the other methods.
    """

    method: str
    values: Tensor
    gradient: Tensor
    score: Tensor
    baseline_score: Tensor
    elsewhere: Tensor
    steps: Tensor

    @property
    def difference(self) -> Tensor:
        """The score that the attributions ought to add up to: float64 [N]."""
        return self.score - self.baseline_score

    @property
    def residue(self) -> Tensor:
        """What the attributions add up to, minus the difference: float64 [N]."""
        return self.values.double().sum((1, 2, 3)) + self.elsewhere - self.difference

    @property
    def complete(self) -> Tensor:
        """Whether the residue is at most 1 % of the difference, or of a tenth of all attributions: bool [N].

        What float32 cannot tell from the scores counts as none, too.
        """
        tenth = 0.1 * self.values.double().abs().sum((1, 2, 3))
        rounding = ROUNDING * torch.maximum(self.score.abs(), self.baseline_score.abs())
        return self.residue.abs() <= torch.maximum(COMPLETE * torch.maximum(self.difference.abs(), tenth), rounding)


def attribute(
    suffix: Suffix,
    state: State,
    target: Target,
    method: str = "integrated",
    baseline: Tensor | None = None,
    steps: int | None = None,
    most_steps: int | None = None,
) -> Attribution:
    """Attribute the score of N pictures to the units and positions of a layer.

    method: "integrated" (integrated gradients: the gradient's mean on the straight line from the baseline to the
    picture's values), "patching" (the gradient at the picture's values) or "gradient" (the same against a baseline of
    zero). Each is multiplied by the values minus the baseline.
    baseline: values [N or 1, ...] that fit the layer's node, or float32 [C], one a unit; zero by default.
    steps: of integrated gradients. By default 16, and twice as many for pictures for which the attributions do not add
    up to the difference, up to `most_steps` (256). Raises UsageError for an unknown method.
    """
    if method not in METHODS:
        raise unknown("method", method, METHODS)
    if method == "gradient" and baseline is not None:
        raise UsageError("gradient x activation is against zero: take patching for another baseline")
    low = _baseline(suffix, state, baseline)
    everyone = torch.arange(len(state))
    score, baseline_score = (_scores(suffix, state, value, everyone, target) for value in (state.value, low))

    def collected() -> Attribution:
        every = gradient * (state.value - low)
        values = suffix.map(every)
        elsewhere = every.double().flatten(1).sum(1) - values.double().flatten(1).sum(1)
        return Attribution(method, values, suffix.map(gradient), score, baseline_score, elsewhere, used)

    used = torch.ones(len(state), dtype=torch.int64)
    if method != "integrated":
        gradient = _mean_gradient(suffix, state, target, everyone, low, np.ones(1), np.ones(1))
        return collected()
    gradient = torch.zeros_like(state.value)
    left, count = everyone, steps or STEPS
    while True:
        points, weights = np.polynomial.legendre.leggauss(count)
        gradient[left] = _mean_gradient(suffix, state, target, left, low, (points + 1) / 2, weights / 2)
        used[left] = count
        found = collected()
        left, count = left[~found.complete[left]], 2 * count
        if steps is not None or not len(left) or count > (most_steps or MOST_STEPS):
            return found


def ablated(
    suffix: Suffix, state: State, target: Target, picture: int, masks: Tensor, baseline: Tensor | None = None
) -> Tensor:
    """Return by how much the score of one picture falls if parts of the layer are set to the baseline: float64 [n].

    masks: bool [n, C, H, W], the parts, or what broadcasts to that. This is what attributions estimate.
    """
    values = suffix.map(state.value[picture : picture + 1])
    low = suffix.map(_baseline(suffix, state, baseline)[picture : picture + 1])
    parts = (torch.where(part, low, values) for part in masks.split(AT_ONCE))
    drops = [replaced(suffix, state, target, picture, maps) for maps in parts]
    return torch.cat(drops) if drops else torch.zeros(0, dtype=torch.float64)


def replaced(suffix: Suffix, state: State, target: Target, picture: int, maps: Tensor) -> Tensor:
    """Return by how much the score of one picture falls if the layer has other values: float64 [n].

    maps: float32 [n, C, H, W].
    """
    own = state.value[picture : picture + 1]
    score = _scores(suffix, state, own, torch.tensor([picture]), target)
    whose = torch.full((len(maps),), picture)
    return score - _scores(suffix, state, suffix.with_map(own, maps), whose, target)


def _baseline(suffix: Suffix, state: State, baseline: Tensor | None) -> Tensor:
    """Return the baseline of each picture, as the layer's node has its values: [N, ...]."""
    if baseline is None:
        return torch.zeros_like(state.value)
    if baseline.ndim == 1:
        if len(baseline) != suffix.layer.channels:
            raise UsageError(
                f"a baseline of {len(baseline)} values: layer {suffix.layer.name} has {suffix.layer.channels} units"
            )
        maps = baseline[None, :, None, None].expand_as(suffix.map(state.value))
        return suffix.with_map(torch.zeros_like(state.value), maps)
    if baseline.shape[1:] != state.value.shape[1:] or len(baseline) not in (1, len(state)):
        raise UsageError(
            f"a baseline of shape {tuple(baseline.shape)}: the layer's node has {tuple(state.value.shape)}"
        )
    return baseline.expand_as(state.value)


@torch.no_grad()
def _scores(suffix: Suffix, state: State, values: Tensor, pictures: Tensor, target: Target) -> Tensor:
    """Return the score of each of these values of the layer: float64 [n]."""
    parts = [
        target.score(suffix.logits(state, values[rows], pictures[rows]).double(), pictures[rows])
        for rows in torch.arange(len(values)).split(AT_ONCE)
    ]
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.float64)


def _mean_gradient(
    suffix: Suffix,
    state: State,
    target: Target,
    pictures: Tensor,
    low: Tensor,
    at: NDArray[np.float64],
    weights: NDArray[np.float64],
) -> Tensor:
    """Return the weighted gradient over points of the line from the baseline (0) to the pictures' values (1).

    Returns float32 [len(pictures), ...], laid out as the layer's node.
    """
    mean = torch.zeros_like(state.value[pictures])
    index = torch.arange(len(pictures)).repeat_interleave(len(at))
    alpha = torch.tensor(np.tile(at, len(pictures)), dtype=torch.float32)
    weight = torch.tensor(np.tile(weights, len(pictures)), dtype=torch.float32)
    for rows in torch.arange(len(index)).split(AT_ONCE):
        whose = pictures[index[rows]]
        shape = (-1, *[1] * (state.value.ndim - 1))
        value = low[whose] + alpha[rows].reshape(shape) * (state.value[whose] - low[whose])
        value = suffix.arranged(value).requires_grad_()
        with torch.enable_grad():
            score = (target.score(suffix.logits(state, value, whose), whose) * weight[rows]).sum()
            (gradient,) = torch.autograd.grad(score, value)
        mean.index_add_(0, index[rows], gradient)
    return mean
