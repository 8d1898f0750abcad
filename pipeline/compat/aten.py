"""Gradients and fused operations that torch uses itself but does not document."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.compat.onednn import Settings


def clip_gradient(gradient: Tensor, values: Tensor, low: float, high: float | None) -> Tensor:
    """Return the gradient of a clip: zero where `values`, its input or output, are at a limit or beyond it."""
    backward = _operator("threshold_backward" if high is None else "hardtanh_backward")
    if backward is None:
        blocked = values <= low if high is None else (values <= low) | (values >= high)
        return gradient.masked_fill(blocked, 0)
    result: Tensor = backward(gradient, values, low) if high is None else backward(gradient, values, low, high)
    return result


def convolution_gradient(gradient: Tensor, x: Tensor, weight: Tensor, settings: Settings) -> Tensor:
    """Return the gradient of a convolution with respect to its input `x`."""
    padding, stride, dilation, groups = settings
    backward = _operator("convolution_backward")
    if backward is not None:
        wanted = (True, False, False)  # for the input, but not for the weight and the bias
        result: Tensor = backward(
            gradient, x, weight, None, stride, padding, dilation, False, (0, 0), groups, wanted
        )[0]  # fmt: skip
        return result
    unused = [
        x.shape[axis] - (gradient.shape[axis] - 1) * step + 2 * pad - (weight.shape[axis] - 1) * apart - 1
        for axis, step, pad, apart in zip((2, 3), stride, padding, dilation, strict=True)
    ]  # rows and columns at the end of the input that no output reads
    return F.conv_transpose2d(gradient, weight, None, stride, padding, unused, groups, dilation)


def rectified_sum(a: Tensor, b: Tensor, in_place: bool) -> Tensor:
    """Return max(a + b, 0), computed in one pass if torch has the operator.

    `in_place`: write the result to the memory of `a`, which must have the shape of the sum.
    """
    add = _operator("_add_relu_" if in_place else "_add_relu")
    if add is None:
        return a.add_(b).relu_() if in_place else F.relu(a + b)
    result: Tensor = add(a, b)
    return result


def _operator(name: str) -> Any:
    return getattr(torch.ops.aten, name, None)
