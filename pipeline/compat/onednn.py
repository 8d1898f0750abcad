"""oneDNN's convolutions, through the operators that torch's inductor uses for frozen graphs; CPU and float32 only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Limits = tuple[float, float | None]  # values outside become the nearest limit; None: no upper limit
Settings = tuple[Any, Any, Any, int]  # padding, stride, dilation, groups


def can_convolve() -> bool:
    """Whether oneDNN can be called directly. If not, calling it here has no advantage over torch's own convolution."""
    return torch.backends.mkldnn.is_available() and _operator("_convolution_pointwise") is not None


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, settings: Settings, limits: Limits | None) -> Tensor:
    """Compute a convolution and its clip in one operation of oneDNN, for any batch size."""
    direct = _operator("_convolution_pointwise")
    if direct is None:
        padding, stride, dilation, groups = settings
        y = F.conv2d(x, weight, bias, stride, padding, dilation, groups)
        return y if limits is None else y.clamp(*limits)
    name, scalars = "none", list[float]()
    if limits is not None:
        low, high = limits
        name, scalars = ("relu", []) if high is None else ("hardtanh", [low, high])
    result: Tensor = direct(x, weight, bias, *settings, name, scalars, "")
    return result


def packed_weight(weight: Tensor, settings: Settings, shape: Sequence[int]) -> Tensor:
    """Return the weight in oneDNN's layout for inputs of this shape, or unchanged if torch cannot convert it."""
    pack = _operator("_reorder_convolution_weight")
    packed: Tensor = weight if pack is None else pack(weight, *settings, list(shape))
    return packed


def _operator(name: str) -> Any:
    return getattr(torch.ops.mkldnn, name, None)
