"""Objectives of the picture itself, or of how large a layer's activations are. Most are subtracted, as penalties.

Each picture has its own sum, whereas Lucid sums over the batch. For one picture the two are the same. In a batch no
picture affects another.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from pipeline.featurevis.objectives.objective import INPUT, Activations, Objective, called, per_picture
from store.errors import UsageError


def total_variation(layer: str = INPUT) -> Objective:
    """Measure the sum of absolute differences between neighbours. Simonyan et al., 2014."""

    def measure(T: Activations) -> Tensor:
        x = T(layer)
        return x.diff(dim=2).abs().sum((1, 2, 3)) + x.diff(dim=3).abs().sum((1, 2, 3))

    return Objective((layer,), called("total_variation", layer), measure)


def L1(layer: str = INPUT, constant: float = 0, batch: int | None = None) -> Objective:  # noqa: N802
    """Measure the sum of absolute differences from a constant."""

    def measure(T: Activations) -> Tensor:
        return per_picture(T, (T(layer) - constant).abs().sum((1, 2, 3)), batch)

    return Objective((layer,), called("L1", layer, constant, batch=batch), measure)


def L2(  # noqa: N802
    layer: str = INPUT, constant: float = 0, epsilon: float = 1e-6, batch: int | None = None
) -> Objective:
    """Measure the Euclidean distance from a constant. `epsilon`, added to its square, keeps the gradient finite."""

    def measure(T: Activations) -> Tensor:
        return per_picture(T, (epsilon + (T(layer) - constant).square().sum((1, 2, 3))).sqrt(), batch)

    return Objective((layer,), called("L2", layer, constant, batch=batch), measure)


def blur_input_each_step() -> Objective:
    """Measure half the squared distance from the blurred picture, which is held fixed.

    Subtract k times it. If the pixels are the parameters, a step of plain gradient descent with learning rate 1 then
    makes (1 - k) picture + k blurred. Nguyen et al., 2015.
    """
    return Objective((INPUT,), called("blur_input_each_step"), lambda T: _distance_to_blurred(T(INPUT)))


def blur_alpha_each_step() -> Objective:
    """Measure the same as `blur_input_each_step` for the alpha channel, which is the last one."""

    def measure(T: Activations) -> Tensor:
        if T(INPUT).shape[1] not in (2, 4):
            raise UsageError(f"blur_alpha_each_step: no alpha in {T(INPUT).shape[1]} channels; set alpha=True")
        return _distance_to_blurred(T(INPUT)[:, -1:])

    return Objective((INPUT,), called("blur_alpha_each_step"), measure)


def penalize_boundary_complexity(
    width: int = 20, mask: NDArray[np.floating] | Tensor | None = None, color: float = 0.5
) -> Objective:
    """Measure minus the complexity of the border, which is `width` pixels wide. Add it to keep the border smooth.

    The complexity of a pixel is its squared distance from the 5 x 5 blur plus 0.8 times that from `color`. `mask`
    [H, W] weights the pixels; it replaces the border.
    """

    def measure(T: Activations) -> Tensor:
        x = T(INPUT)
        cost = (blurred(x, 5) - x).square() + 0.8 * (x - color).square()
        if mask is not None:
            where = torch.as_tensor(mask).to(x)
        else:
            where = torch.ones(x.shape[2:]).to(x)
            where[width : x.shape[2] - width, width : x.shape[3] - width] = 0
        return -(cost * where).sum((1, 2, 3))

    return Objective((INPUT,), called("penalize_boundary_complexity", width, color), measure)


def input_diff(original: Any) -> Objective:
    """Measure the root mean squared difference from a picture [H, W, C] or a batch [n, H, W, C] in 0..1."""
    given = torch.as_tensor(np.asarray(original), dtype=torch.float32)
    if given.ndim not in (3, 4):
        raise UsageError(f"input_diff: expected a picture [H, W, C] in 0..1, found {list(given.shape)}")
    target = given.movedim(-1, -3)

    def measure(T: Activations) -> Tensor:
        x = T(INPUT)
        if x.shape[1:] != target.shape[-3:]:
            raise UsageError(
                f"input_diff: pictures are {list(x.shape[1:])}, but the original is {list(target.shape[-3:])}"
            )
        return (x - target.to(x)).square().mean((1, 2, 3)).sqrt()

    return Objective((INPUT,), called("input_diff", target), measure)


def blurred(x: Tensor, width: int = 3) -> Tensor:
    """Blur each channel with a `width` x `width` box whose outer ring has half the weight.

    At the border, take the mean of the neighbours that exist.
    """
    kernel = torch.full((width, width), 0.5, dtype=x.dtype, device=x.device)
    kernel[1:-1, 1:-1] = 1.0
    weight = kernel.expand(x.shape[1], 1, -1, -1)
    total = F.conv2d(x, weight, padding=width // 2, groups=x.shape[1])
    return total / F.conv2d(torch.ones_like(x[:1]), weight, padding=width // 2, groups=x.shape[1])


def _distance_to_blurred(x: Tensor) -> Tensor:
    return 0.5 * (x - blurred(x).detach()).square().sum((1, 2, 3))
