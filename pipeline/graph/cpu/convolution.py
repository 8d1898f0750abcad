"""Convolutions arranged for a CPU: padding and a clip are part of the operation, and oneDNN computes small batches too.

Two things cost a pass each that the arithmetic does not need. TensorFlow's "same" padding of a strided convolution is
one pixel more at the right and bottom, which torch's convolutions cannot say: its weights get a row and a column of
zeros at the left and top instead, and padding is symmetric again (for depthwise convolutions, where the zeros are
cheaper than the copy). And ReLU or ReLU6 goes to oneDNN with the convolution, by the operator that torch's inductor
uses for frozen graphs. Zeros change no bit; the fused clip gives the bits of the two operations wherever torch calls
oneDNN for the first, which it does not at a batch of one or two.

And on one thread torch keeps 1 x 1 convolutions of fewer than 16 pictures to itself, its gradients too, at half the
speed: they go to oneDNN at any batch, so that pieces of a batch cost what the whole does. For the same reason weights
are kept as oneDNN wants them, which it would else make of them at every call (a tenth of a deep layer's time).
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from pipeline.compat import aten, onednn
from pipeline.compat.onednn import Limits, Settings
from pipeline.compat.timm import is_same_padded

FROM = 16  # pictures: torch computes 1 x 1 convolutions and their gradients by oneDNN


class Convolution(nn.Module):
    """min(max(conv(x), low), high), or conv(x) where there are no limits.

    In inference mode its weights are taken as they are at the first call, in the layout that oneDNN wants for it.
    """

    def __init__(self, conv: nn.Conv2d, limits: Limits | None = None):
        super().__init__()
        self.conv, self.limits, self.same = conv, limits, is_same_padded(conv)
        settings = (conv.padding, conv.stride, conv.dilation, conv.groups)
        self.direct = limits is not None or _is_pointwise(conv.weight, settings)
        self._packed: tuple[tuple[int, ...], Tensor] | None = None  # weights, for maps of one size

    @property
    def is_arranged(self) -> bool:
        """Whether this does anything with a gradient that the convolution alone would not."""
        return (self.direct and onednn.can_convolve()) or (self.same and _is_depthwise(self.conv))

    def forward(self, x: Tensor) -> Tensor:
        conv = self.conv
        if x.device.type != "cpu" or x.ndim != 4:
            return self._clip(conv(x))
        single = x.dtype == conv.weight.dtype == torch.float32 and onednn.can_convolve()
        if single and torch.is_inference_mode_enabled():
            return self._frozen(x)
        x, weight, settings = self._padded(x)
        padding, stride, dilation, groups = settings
        if not self.direct or not single or (weight.requires_grad and torch.is_grad_enabled()):
            return self._clip(F.conv2d(x, weight, conv.bias, stride, padding, dilation, groups))
        if x.requires_grad and torch.is_grad_enabled():
            return _Direct.apply(x, weight, conv.bias, settings, self.limits)
        return onednn.convolve(x, weight, conv.bias, settings, self.limits)

    def _frozen(self, x: Tensor) -> Tensor:
        x, weight, settings = self._padded(x)
        size, packed = tuple(x.shape[1:]), self._packed
        if packed is None or packed[0] != size:
            packed = self._packed = size, onednn.packed_weight(weight, settings, x.shape)
        return onednn.convolve(x, packed[1], self.conv.bias, settings, self.limits)

    def _padded(self, x: Tensor) -> tuple[Tensor, Tensor, Settings]:
        """What to convolve, with what and how: padding that a number cannot say is with the one or the other."""
        conv = self.conv
        weight, padding = conv.weight, conv.padding
        if self.same:
            before, after = zip(*(self._pads(x, axis) for axis in (0, 1)), strict=True)
            more = [b - a for a, b in zip(before, after, strict=True)]
            if _is_depthwise(conv):
                weight = F.pad(weight, (more[1], 0, more[0], 0))
                padding = before[0] + more[0], before[1] + more[1]
            else:
                x, padding = F.pad(x, (before[1], after[1], before[0], after[0])), (0, 0)
        return x, weight, (padding, conv.stride, conv.dilation, conv.groups)

    def _clip(self, y: Tensor) -> Tensor:
        """By relu and hardtanh: the gradient of torch's clamp at a limit is 1 before torch 2.14 and 0 since."""
        if self.limits is None:
            return y
        low, high = self.limits
        return F.relu(y) if (low, high) == (0, None) else F.hardtanh(y, low, math.inf if high is None else high)

    def _pads(self, x: Tensor, axis: int) -> tuple[int, int]:
        """Zeros before and after, as many as make the output as long as the input divided by the stride."""
        size, stride = x.shape[2 + axis], self.conv.stride[axis]
        reach = (self.conv.kernel_size[axis] - 1) * self.conv.dilation[axis] + 1
        total = max((-(-size // stride) - 1) * stride + reach - size, 0)
        return total // 2, total - total // 2


class _Direct(torch.autograd.Function):
    """With the gradient for x. What a clip lets through shows in its output, so that its input is never stored."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, settings: Settings, limits: Limits | None
    ) -> Tensor:
        y = onednn.convolve(x, weight, bias, settings, limits)
        ctx.settings, ctx.limits = settings, limits
        ctx.save_for_backward(x, weight, None if limits is None else y)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, y = ctx.saved_tensors
        if ctx.limits is not None:
            gradient = aten.clip_gradient(gradient, y, *ctx.limits)
        if len(x) < FROM and _is_pointwise(weight, ctx.settings):
            found = onednn.convolve(gradient, weight.transpose(0, 1), None, ctx.settings, None)
        else:
            found = aten.convolution_gradient(gradient, x, weight, ctx.settings)
        return found, None, None, None, None


def _is_pointwise(weight: Tensor, settings: Settings) -> bool:
    """Whether every pixel is multiplied by one matrix."""
    padding, stride, _, groups = settings
    return weight.shape[2:] == (1, 1) and tuple(padding) == (0, 0) and tuple(stride) == (1, 1) and groups == 1


def _is_depthwise(conv: nn.Conv2d) -> bool:
    return conv.groups == conv.in_channels and conv.dilation == (1, 1)
