"""oneDNN's convolutions, by the operators that torch's inductor uses for frozen graphs: on CPUs and in float32."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Limits = tuple[float, float | None]  # values outside become the nearest limit; None: there is no upper limit
Settings = tuple[Any, Any, Any, int]  # padding, stride, dilation, groups


def can_convolve() -> bool:
    """Whether oneDNN can be called directly; otherwise torch's own convolution is as good."""
    return torch.backends.mkldnn.is_available() and _operator("_convolution_pointwise") is not None


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, settings: Settings, limits: Limits | None) -> Tensor:
    """A convolution and its clip in one operation of oneDNN, whatever the batch."""
    direct = _operator("_convolution_pointwise")
    if direct is None:
        padding, stride, dilation, groups = settings
        y = F.conv2d(x, weight, bias, stride, padding, dilation, groups)
        return y if limits is None else y.clamp(*limits)
    name, scalars = "none", list[float]()
    if limits is not None:
        low, high = limits
        name, scalars = ("relu", []) if high is None else ("hardtanh", [low, high])
    found: Tensor = direct(x, weight, bias, *settings, name, scalars, "")
    return found


def packed_weight(weight: Tensor, settings: Settings, shape: Sequence[int]) -> Tensor:
    """The weight in the layout that oneDNN wants for inputs of this shape; as it is where it cannot be laid out."""
    pack = _operator("_reorder_convolution_weight")
    found: Tensor = weight if pack is None else pack(weight, *settings, list(shape))
    return found


def _operator(name: str) -> Any:
    return getattr(torch.ops.mkldnn, name, None)
