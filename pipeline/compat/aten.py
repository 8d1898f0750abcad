"""Gradients and fused operations that torch's own functions use and torch does not document."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.compat.onednn import Settings


def clip_gradient(gradient: Tensor, values: Tensor, low: float, high: float | None) -> Tensor:
    """The gradient of a clip: zero where `values`, its input or its output, are at a limit or beyond it."""
    backward = _operator("threshold_backward" if high is None else "hardtanh_backward")
    if backward is None:
        blocked = values <= low if high is None else (values <= low) | (values >= high)
        return gradient.masked_fill(blocked, 0)
    found: Tensor = backward(gradient, values, low) if high is None else backward(gradient, values, low, high)
    return found


def convolution_gradient(gradient: Tensor, x: Tensor, weight: Tensor, settings: Settings) -> Tensor:
    """The gradient of a convolution for its input `x`."""
    padding, stride, dilation, groups = settings
    backward = _operator("convolution_backward")
    if backward is not None:
        wanted = (True, False, False)  # for the input, not for the weight and the bias
        found: Tensor = backward(
            gradient, x, weight, None, stride, padding, dilation, False, (0, 0), groups, wanted
        )[0]  # fmt: skip
        return found
    unused = [
        x.shape[axis] - (gradient.shape[axis] - 1) * step + 2 * pad - (weight.shape[axis] - 1) * apart - 1
        for axis, step, pad, apart in zip((2, 3), stride, padding, dilation, strict=True)
    ]  # rows and columns of the input that no output reads
    return F.conv_transpose2d(gradient, weight, None, stride, padding, unused, groups, dilation)


def rectified_sum(a: Tensor, b: Tensor, in_place: bool) -> Tensor:
    """max(a + b, 0) in one pass; `in_place`: in the memory of `a`, whose shape the sum must have."""
    add = _operator("_add_relu_" if in_place else "_add_relu")
    if add is None:
        return a.add_(b).relu_() if in_place else F.relu(a + b)
    found: Tensor = add(a, b)
    return found


def _operator(name: str) -> Any:
    return getattr(torch.ops.aten, name, None)
