"""Convolutions arranged for a CPU: padding and a clip are part of the operation, and oneDNN computes small batches too.

Two things would each cost an extra pass over a tensor:

- TensorFlow's "same" padding of a strided convolution has one more pixel at the right and bottom, which torch's
  convolutions cannot express. Depthwise convolutions get a row and a column of zero weights at the left and top
  instead, so that their padding is symmetric again. There the zeros are cheaper than a padded copy of the input.
- ReLU or ReLU6 is computed by oneDNN together with the convolution, through the operator that torch's inductor uses for
  frozen graphs.

The zeros change no bit. The fused clip gives the bits of the two separate operations if torch calls oneDNN for the
convolution, which it does not do for a batch of one or two.

On one thread, torch does not call oneDNN for 1 x 1 convolutions of fewer than 16 pictures, nor for their gradients, and
takes twice as long. Here they go to oneDNN at any batch size, so that a batch costs the same in pieces as in one. For
speed, weights are also kept in oneDNN's layout. It would otherwise convert them at every call, which takes a tenth of a
deep layer's time.
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

FROM = 16  # pictures: for this many or more, torch itself computes 1 x 1 convolutions and their gradients by oneDNN


class Convolution(nn.Module):
    """Compute min(max(conv(x), low), high), or conv(x) if there are no limits.

    In inference mode the weights are converted to oneDNN's layout at the first call with a map size. A later change of
    the weights may have no effect until the map size changes.
    """

    def __init__(self, conv: nn.Conv2d, limits: Limits | None = None):
        super().__init__()
        self.conv, self.limits, self.same = conv, limits, is_same_padded(conv)
        settings = (conv.padding, conv.stride, conv.dilation, conv.groups)
        self.direct = limits is not None or _is_pointwise(conv.weight, settings)
        self._packed: tuple[tuple[int, ...], Tensor] | None = None  # the map size and the weights in the layout for it

    @property
    def is_arranged(self) -> bool:
        """Whether, if gradients are needed, this computes anything in another way than the convolution alone."""
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
        """Return input, weight and settings. Padding that settings cannot express is added to the weight or input."""
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
        """Clip with relu or hardtanh, not clamp, whose gradient at a limit is 1 before torch 2.14 and 0 since then."""
        if self.limits is None:
            return y
        low, high = self.limits
        return F.relu(y) if (low, high) == (0, None) else F.hardtanh(y, low, math.inf if high is None else high)

    def _pads(self, x: Tensor, axis: int) -> tuple[int, int]:
        """Return the zeros to add before and after, so that the output size is the input size / stride, rounded up."""
        size, stride = x.shape[2 + axis], self.conv.stride[axis]
        reach = (self.conv.kernel_size[axis] - 1) * self.conv.dilation[axis] + 1
        total = max((-(-size // stride) - 1) * stride + reach - size, 0)
        return total // 2, total - total // 2


class _Direct(torch.autograd.Function):
    """A convolution with its clip, differentiable in x.

    The mask of the clip is recovered from its output, so its input need not be saved.
    """

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
            x_gradient = onednn.convolve(gradient, weight.transpose(0, 1), None, ctx.settings, None)
        else:
            x_gradient = aten.convolution_gradient(gradient, x, weight, ctx.settings)
        return x_gradient, None, None, None, None


def _is_pointwise(weight: Tensor, settings: Settings) -> bool:
    """Whether the convolution multiplies every pixel by the same matrix."""
    padding, stride, _, groups = settings
    return weight.shape[2:] == (1, 1) and tuple(padding) == (0, 0) and tuple(stride) == (1, 1) and groups == 1


def _is_depthwise(conv: nn.Conv2d) -> bool:
    return conv.groups == conv.in_channels and conv.dilation == (1, 1)
