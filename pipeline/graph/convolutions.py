"""Convolutions arranged so that a CPU passes over their tensors once: padding and a clip are part of the operation.

Two things cost a pass each that the arithmetic does not need. TensorFlow's "same" padding of a strided convolution is
one pixel more at the right and bottom, which torch's convolutions cannot say: its weights get a row and a column of
zeros at the left and top instead, and padding is symmetric again (for depthwise convolutions, where the zeros are
cheaper than the copy). And ReLU or ReLU6 goes to oneDNN with the convolution, by the operator that torch's inductor
uses for frozen graphs. Zeros change no bit; the fused clip gives the bits of the two operations wherever torch calls
oneDNN for the first, which it does not at a batch of one or two. But oneDNN makes 0 of NaN, which torch hands on and
the scan refuses: a clip is fused only where no NaN can come in.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.autograd.function import once_differentiable

from pipeline.graph.bounds import clip_limits
from pipeline.graph.fold import is_plain, is_same_padded
from pipeline.graph.ops import ACTIVATIONS, NORMS, TRANSPARENT, Op, attribute, op_of
from pipeline.graph.surgery import attach, copied, is_hooked, replace_node

# What makes finite numbers of finite ones, short of overflow, given finite parameters. Division and logarithms do not.
_FINITE = (
    ACTIVATIONS
    | NORMS
    | TRANSPARENT
    | frozenset(
        {"conv", "convtranspose", "linear", "add", "sub", "mul", "cat", "mean", "pad", "interpolate", "softmax"}
    )
    | frozenset({"maxpool", "avgpool", "adaptivemaxpool", "adaptiveavgpool", "getitem", "chunk", "split"})
)
Limits = tuple[float, float | None]  # what is below or above becomes it; None: nothing is above
Settings = tuple[Any, Any, Any, int]  # padding, stride, dilation, groups
aten = torch.ops.aten


class Convolution(nn.Module):
    """min(max(conv(x), low), high), or conv(x) where there are no limits."""

    def __init__(self, conv: nn.Conv2d, limits: Limits | None = None):
        super().__init__()
        self.conv, self.limits, self.same = conv, limits, is_same_padded(conv)

    def forward(self, x: Tensor) -> Tensor:
        conv = self.conv
        if x.device.type != "cpu" or x.ndim != 4:
            return self._clip(conv(x))
        weight, padding = conv.weight, conv.padding
        if self.same:
            before, after = zip(*(self._pads(x, axis) for axis in (0, 1)), strict=True)
            more = [b - a for a, b in zip(before, after, strict=True)]
            if _is_depthwise(conv):
                weight = F.pad(weight, (more[1], 0, more[0], 0))
                padding = before[0] + more[0], before[1] + more[1]
            else:
                x, padding = F.pad(x, (before[1], after[1], before[0], after[0])), (0, 0)
        settings = (padding, conv.stride, conv.dilation, conv.groups)
        if self.limits is None or x.dtype != torch.float32 or (weight.requires_grad and torch.is_grad_enabled()):
            return self._clip(F.conv2d(x, weight, conv.bias, conv.stride, padding, conv.dilation, conv.groups))
        if x.requires_grad and torch.is_grad_enabled():
            return _Clipped.apply(x, weight, conv.bias, settings, self.limits)
        return _fused(x, weight, conv.bias, settings, self.limits)

    def _clip(self, y: Tensor) -> Tensor:
        return y if self.limits is None else y.clamp(*self.limits)

    def _pads(self, x: Tensor, axis: int) -> tuple[int, int]:
        """Zeros before and after, as many as make the output as long as the input divided by the stride."""
        size, stride = x.shape[2 + axis], self.conv.stride[axis]
        reach = (self.conv.kernel_size[axis] - 1) * self.conv.dilation[axis] + 1
        total = max((-(-size // stride) - 1) * stride + reach - size, 0)
        return total // 2, total - total // 2


def _fused(x: Tensor, weight: Tensor, bias: Tensor | None, settings: Settings, limits: Limits) -> Tensor:
    low, high = limits
    name, scalars = ("relu", []) if high is None else ("hardtanh", [low, high])
    y: Tensor = torch.ops.mkldnn._convolution_pointwise(x, weight, bias, *settings, name, scalars, "")
    return y


class _Clipped(torch.autograd.Function):
    """With the gradient for x. What a clip lets through shows in its output, so that its input is never stored."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, settings: Settings, limits: Limits) -> Tensor:
        y = _fused(x, weight, bias, settings, limits)
        ctx.save_for_backward(x, weight, y)
        ctx.settings, ctx.limits = settings, limits
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, y = ctx.saved_tensors
        low, high = ctx.limits
        inner = (
            aten.threshold_backward(gradient, y, low)
            if high is None
            else aten.hardtanh_backward(gradient, y, low, high)
        )
        padding, stride, dilation, groups = ctx.settings
        found = aten.convolution_backward(
            inner, x, weight, None, stride, padding, dilation, False, (0, 0), groups, (True, False, False)
        )
        return found[0], None, None, None, None


def arranged(module: fx.GraphModule, keep: Collection[str], clips: bool) -> fx.GraphModule:
    """The same network, sharing its parameters. `clips`: a ReLU, ReLU6 or hardtanh joins the convolution whose only
    user it is, under the clip's node name; convolutions that `keep` names stay as they are."""
    fresh = copied(module)
    finite = _finite(fresh) if clips and torch.backends.mkldnn.is_available() else set()
    for node in list(fresh.graph.nodes):
        conv = op_of(node, fresh).module
        if node.name in keep or not isinstance(conv, nn.Conv2d) or not _is_arrangeable(conv):
            continue
        if len(node.args) != 1 or node.kwargs:
            continue
        (user,) = node.users if len(node.users) == 1 else (node,)
        limits = _limits(user, fresh) if user is not node and node.name in finite else None
        if limits is None and not (is_same_padded(conv) and _is_depthwise(conv)):
            continue
        last = node if limits is None else user
        name = attach(fresh, f"{last.name}_arranged", Convolution(conv, limits))
        with fresh.graph.inserting_before(last):
            one = fresh.graph.call_module(name, node.args)
        replace_node(last, one)
        if last is not node:
            fresh.graph.erase_node(node)
    fresh.delete_all_unused_submodules()
    fresh.recompile()
    return fresh


def _finite(module: fx.GraphModule) -> set[str]:
    """Nodes whose values are finite whatever the picture, by what they are made of."""
    found: set[str] = set()
    for node in module.graph.nodes:
        if node.op == "get_attr":
            value = attribute(module, str(node.target))
            good = isinstance(value, Tensor) and _all_finite(value)
        else:
            op = op_of(node, module)
            good = node.op == "placeholder" or (op.kind in _FINITE and _has_finite_parameters(node, op))
        if good and all(source.name in found for source in node.all_input_nodes):
            found.add(node.name)
    return found


def _has_finite_parameters(node: fx.Node, op: Op) -> bool:
    numbers: list[float] = []
    fx.node.map_aggregate((node.args, node.kwargs), lambda x: numbers.append(x) if isinstance(x, float) else None)
    if not all(math.isfinite(x) for x in numbers):
        return False
    if op.module is None:
        return not op.norm  # of a function's epsilon nothing is known
    tensors = (*op.module.parameters(), *op.module.buffers())
    return all(_all_finite(x) for x in tensors) and (not op.norm or _divides_by_something(op.module))


def _divides_by_something(norm: nn.Module) -> bool:
    """Whether what a norm divides by is above zero, whatever the picture."""
    epsilon, variance = getattr(norm, "eps", None), getattr(norm, "running_var", None)
    least = 0.0 if variance is None else float(variance.min())
    return isinstance(epsilon, float) and epsilon + min(least, 0.0) > 0


def _all_finite(x: Tensor) -> bool:
    return bool(x.isfinite().all())


def _limits(node: fx.Node, module: fx.GraphModule) -> Limits | None:
    op = op_of(node, module)
    if op.norm or len(node.all_input_nodes) != 1 or (op.module is not None and is_hooked(op.module)):
        return None
    limits = clip_limits(node, op, op.module) if op.kind in ("relu", "relu6", "hardtanh") else None
    return limits if limits and all(x is None or isinstance(x, (int, float)) for x in limits) else None


def _is_arrangeable(conv: nn.Conv2d) -> bool:
    """Whether it is plain, and zeros, as many as a number says, lie outside."""
    return is_plain(conv) and conv.padding_mode == "zeros" and not isinstance(conv.padding, str)


def _is_depthwise(conv: nn.Conv2d) -> bool:
    return conv.groups == conv.in_channels and conv.dilation == (1, 1)
