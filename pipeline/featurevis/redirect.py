"""Redirected gradients: let gradients pass a ReLU that would block all of them.

Without this, a unit that is silent at the random start gets no gradient, and its picture cannot change. After Lucid,
https://github.com/tensorflow/lucid/blob/master/lucid/misc/redirected_relu_grad.py
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from pipeline.compat.aten import clip_gradient
from pipeline.graph.analysis.bounds import clip_limits
from pipeline.graph.ops import Op, fused_activation, op_of
from pipeline.graph.surgery import copied, replace_node, with_child


class _RedirectedReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, high: float | None) -> Tensor:
        ctx.save_for_backward(x)
        ctx.high = high
        return F.relu(x) if high is None else F.hardtanh(x, 0.0, high)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (x,), grad, high = ctx.saved_tensors, grads[0], math.inf if ctx.high is None else ctx.high
        plain = clip_gradient(grad, x, 0.0, high)
        dead = torch.linalg.vector_norm(plain, math.inf, dim=tuple(range(1, x.ndim))) == 0
        if dead.any():
            x, grad = x[dead], grad[dead]
            wrong = ((x < 0) & (grad > 0)) | ((x > high) & (grad < 0))  # of a loss: a positive gradient pushes x down
            plain[dead] = grad.masked_fill(wrong, 0)
        return plain, None


def redirected_relu(x: Tensor, high: float | None = None) -> Tensor:
    """Apply a ReLU, clipped at `high` if that is given, with a redirected gradient.

    If an element of the batch would pass no gradient at all, its gradient passes instead, except where it would push a
    negative value further down or a value above `high` further up.
    """
    result: Tensor = _RedirectedReLU.apply(x, high)
    return result


def redirected(module: fx.GraphModule) -> fx.GraphModule:
    """Return a copy that shares the parameters, with every ReLU, ReLU6 and clip from zero redirected."""
    fresh = copied(module)
    order = {node: index for index, node in enumerate(fresh.graph.nodes)}
    for node in tuple(order):
        op = op_of(node, fresh)
        act = fused_activation(op.module) if op.norm and op.module is not None else None
        clip = _clip(node, op, act or op.module)
        if clip is None:
            continue
        source = node.all_input_nodes[0]
        with fresh.graph.inserting_before(node):
            bare = fresh.graph.call_module(_without_activation(fresh, node, op.module), (source,)) if act else source
            new = fresh.graph.call_function(redirected_relu, (bare, *clip))
        # An in-place activation overwrites its input, so whatever reads the input later must read the new node. If the
        # activation is not in place, the other readers of its input must not change.
        if _in_place(node, act or op.module) and not act:
            late = order[node]
            source.replace_all_uses_with(new, delete_user_cb=lambda user, late=late: order.get(user, -1) > late)
        replace_node(node, new)
    fresh.delete_all_unused_submodules()
    fresh.recompile()
    return fresh


def _clip(node: fx.Node, op: Op, owner: nn.Module | None) -> tuple[float, ...] | None:
    """Return the upper limit, a tuple of none or one, of an activation that clips from zero; None for other nodes."""
    limits = clip_limits(node, op, owner)
    if limits is None or limits[0] != 0:
        return None
    return () if limits[1] is None else (limits[1],)


def _in_place(node: fx.Node, owner: nn.Module | None) -> bool:
    name = str(getattr(node.target, "__name__", node.target))
    flag = getattr(owner, "inplace", False) or node.kwargs.get("inplace") or any(arg is True for arg in node.args)
    return bool(flag) or name.endswith("_")


def _without_activation(fresh: fx.GraphModule, node: fx.Node, norm: nn.Module | None) -> str:
    """Add a submodule that is the norm of `node` without its built-in activation, and return its path."""
    assert norm is not None
    name = f"unitscope_bare_{node.name}"
    fresh.add_submodule(name, with_child(norm, "act", nn.Identity()))
    return name
