"""Arrange networks for a CPU: compute the same results in fewer passes over the tensors.

A convolution is fused with its padding and its clip (`convolution.py`), and a residual sum with its ReLU.

A fused clip turns NaN into 0 and would hide it from the scan, which refuses NaN; torch's own clips pass it on. So fuse
only where the inputs are provably finite.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Collection

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from pipeline.compat import aten, onednn
from pipeline.compat.modules import is_hooked
from pipeline.compat.onednn import Limits
from pipeline.graph.analysis.bounds import clip_limits
from pipeline.graph.batchnorm_folding import is_plain
from pipeline.graph.cpu.convolution import Convolution
from pipeline.graph.ops import ACTIVATIONS, NORMS, TRANSPARENT, Op, attribute, op_of
from pipeline.graph.surgery import attach, copied, replace_node

_SUMS = (operator.add, torch.add)
# Given finite inputs and parameters, these return finite values, barring overflow. Division and logarithms do not.
_FINITE = (
    ACTIVATIONS
    | NORMS
    | TRANSPARENT
    | frozenset(
        {"conv", "convtranspose", "linear", "add", "sub", "mul", "cat", "mean", "pad", "interpolate", "softmax"}
    )
    | frozenset({"maxpool", "avgpool", "adaptivemaxpool", "adaptiveavgpool", "getitem", "chunk", "split"})
)


class RectifiedSum(nn.Module):
    """Compute max(a + b, 0) in one pass. `in_place`: write the result to the memory of `a`."""

    def __init__(self, in_place: bool):
        super().__init__()
        self.in_place = in_place

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        fits = all(isinstance(x, Tensor) and x.dtype == torch.float32 and x.device.type == "cpu" for x in (a, b))
        if not fits or not torch.is_inference_mode_enabled():
            return F.relu(a + b)
        return aten.rectified_sum(a, b, self.in_place and a.shape == b.shape)


def fused(
    module: fx.GraphModule,
    keep: Collection[str],
    clips: bool,
    memory_format: torch.memory_format = torch.channels_last,
) -> fx.GraphModule:
    """Return the same network with fused operations; it shares the parameters.

    In another memory format than channels last nothing is fused, because fused convolutions return maps in that.

    `clips`: fuse a ReLU, ReLU6 or hardtanh with its convolution, and a ReLU with its sum, if the clip is the only user.
    The fused node has the clip's name. `keep` names convolutions and sums that are not fused with a clip.
    """
    fresh = copied(module)
    if memory_format != torch.channels_last:
        return fresh
    finite = _finite(fresh) if clips and onednn.can_convolve() else set()
    for node in list(fresh.graph.nodes):
        conv = op_of(node, fresh).module
        if not isinstance(conv, nn.Conv2d) or not _is_arrangeable(conv) or len(node.args) != 1 or node.kwargs:
            continue
        (user,) = node.users if len(node.users) == 1 and node.name not in keep else (node,)
        limits = _limits(user, fresh) if user is not node and node.name in finite else None
        arranged = Convolution(conv, limits)
        if not clips and not arranged.is_arranged:
            continue
        last = node if limits is None else user
        name = attach(fresh, f"{last.name}_arranged", arranged)
        with fresh.graph.inserting_before(node):  # its input may be changed in place before the clip
            replacement = fresh.graph.call_module(name, node.args)
        replace_node(last, replacement)
        if last is not node:
            fresh.graph.erase_node(node)
    for node in list(fresh.graph.nodes) if clips else ():
        if node.target in _SUMS and node.name not in keep and node.name in finite:
            _rectify(node, fresh, keep)
    fresh.delete_all_unused_submodules()
    fresh.recompile()
    return fresh


def _rectify(node: fx.Node, module: fx.GraphModule, keep: Collection[str]) -> None:
    """Fuse a sum of two tensors with the ReLU that follows it, if there is one and nothing else uses the sum."""
    relu = node.next
    if len(node.all_input_nodes) != 2 or len(node.args) != 2 or node.kwargs or list(node.users) != [relu]:
        return
    if _limits(relu, module) != (0, None):
        return
    first = node.all_input_nodes[0]
    spent = list(first.users) == [node] and first.name not in keep
    own = isinstance(
        op_of(first, module).module, (Convolution, nn.Conv2d)
    )  # never a view of a tensor that is needed elsewhere
    name = attach(module, f"{relu.name}_arranged", RectifiedSum(spent and own))
    with module.graph.inserting_before(node):
        replacement = module.graph.call_module(name, node.args)
    replace_node(relu, replacement)
    module.graph.erase_node(node)


def _finite(module: fx.GraphModule) -> set[str]:
    """Return the names of the nodes whose values are provably finite for every picture, barring overflow."""
    names: set[str] = set()
    for node in module.graph.nodes:
        if node.op == "get_attr":
            value = attribute(module, str(node.target))
            is_finite = isinstance(value, Tensor) and _all_finite(value)
        else:
            op = op_of(node, module)
            is_finite = node.op == "placeholder" or (op.kind in _FINITE and _has_finite_parameters(node, op))
        if is_finite and all(source.name in names for source in node.all_input_nodes):
            names.add(node.name)
    return names


def _has_finite_parameters(node: fx.Node, op: Op) -> bool:
    numbers: list[float] = []
    fx.node.map_aggregate((node.args, node.kwargs), lambda x: numbers.append(x) if isinstance(x, float) else None)
    if not all(math.isfinite(x) for x in numbers):
        return False
    if op.module is None:
        return not op.norm  # the epsilon of a norm that is a function is not known here
    tensors = (*op.module.parameters(), *op.module.buffers())
    return all(_all_finite(x) for x in tensors) and (not op.norm or _divides_by_something(op.module))


def _divides_by_something(norm: nn.Module) -> bool:
    """Whether a norm divides by a value above zero for every picture."""
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
    """Whether a convolution is plain and pads with zeros by numbers of pixels, not by torch's "same" or "valid"."""
    return is_plain(conv) and conv.padding_mode == "zeros" and not isinstance(conv.padding, str)
