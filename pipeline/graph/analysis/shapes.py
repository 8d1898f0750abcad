"""Shapes of every node's output, without computing values if that is possible, and how each depends on the picture."""

import operator
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from pipeline.compat.fx import shapes_only
from pipeline.compat.modules import attributes_kept
from pipeline.compat.tensors import writes
from pipeline.graph.nested import leaves
from pipeline.graph.ops import attribute, mark_in_place, parameters_of
from store.errors import UsageError

BATCH = 2  # not 1, to tell a batch axis from the leading 1 of a parameter


@dataclass
class Shapes:
    """What one pass through a network shows: the shape of each node that is a tensor, and what the network returns.

    `real`: the nodes that are floating-point tensors, which alone can be layers. `returned`: the network's result, with
    tensors that may have no values; `structured`: the values of the nodes in it that are no tensors. `numbers`: the
    nodes that are whole numbers, such as sizes.
    """

    of: dict[fx.Node, tuple[int, ...]] = field(default_factory=dict)
    real: set[fx.Node] = field(default_factory=set)
    structured: dict[fx.Node, Any] = field(default_factory=dict)
    numbers: dict[fx.Node, int] = field(default_factory=dict)


class _Recorder(fx.Interpreter):
    def __init__(self, module: fx.GraphModule):
        super().__init__(module, garbage_collect_values=True)
        self.shapes = Shapes()
        self.returned = set(next(iter(reversed(module.graph.nodes))).all_input_nodes)

    def run_node(self, n: fx.Node) -> Any:
        inputs = [
            (source, x) for source in n.all_input_nodes for x in leaves(self.env[source]) if isinstance(x, Tensor)
        ]
        before = [writes(x) for _, x in inputs]
        value = super().run_node(n)
        changed = [source for (source, x), count in zip(inputs, before, strict=True) if writes(x) != count]
        mark_in_place(n, dict.fromkeys(changed))
        if isinstance(value, Tensor):
            self.shapes.of[n] = tuple(int(size) for size in value.shape)
            if value.is_floating_point():
                self.shapes.real.add(n)
        elif isinstance(value, int):
            self.shapes.numbers[n] = value
        if n in self.returned and not isinstance(value, Tensor):
            self.shapes.structured[n] = value
        return value


def propagate(module: fx.GraphModule, input_shape: tuple[int, ...]) -> Shapes:
    """Run a batch of BATCH pictures through a network, and mark the nodes that change their input in place.

    input_shape: [1, C, H, W]. Raises UsageError if the network does not run on a picture of that shape.
    """
    recorder = _Recorder(module)
    size = (BATCH, *input_shape[1:])
    # The picture takes the dtype and device of the weights: a network can be float64, and on any device.
    like = next((p for p in module.parameters() if p.is_floating_point()), torch.empty(0))
    try:
        with torch.no_grad(), attributes_kept(module), shapes_only() as device:
            recorder.run(torch.empty(size, device=device or like.device, dtype=like.dtype))
    except Exception:  # an operator whose result's shape is not known without its values: compute for real
        recorder = _Recorder(module)
        try:
            with torch.no_grad(), attributes_kept(module):
                recorder.run(torch.zeros(size, device=like.device, dtype=like.dtype))
        except Exception as error:
            raise not_running(size[1:], error) from error
    return recorder.shapes


def not_running(shape: tuple[int, ...], error: Exception) -> UsageError:
    """Return the error for a network that raises `error` on a picture of a shape [C, H, W]."""
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return UsageError(f"the network does not run on a picture of shape {shape}: {reason}")


def dependence(module: fx.GraphModule, shapes: Mapping[fx.Node, tuple[int, ...]]) -> dict[fx.Node, int]:
    """Return for each node: 0 if it depends on the picture's size at most, 1 on the picture, 2 through a weight."""
    level: dict[fx.Node, int] = {}
    weights: set[fx.Node] = set()  # parameters, and what is computed from parameters alone
    tuples = {source for node in module.graph.nodes if node in shapes for source in node.all_input_nodes}
    for node in module.graph.nodes:
        if node.op == "placeholder":
            level[node] = 1
            continue
        level[node] = max((level[source] for source in node.all_input_nodes), default=0)
        if node.op == "output":
            continue
        if node not in shapes and not (node in tuples and _is_tuple(node, shapes)):
            level[node] = 0
        elif level[node] == 1 and _is_weighted(node, module, weights):
            level[node] = 2
        elif level[node] == 0 and _is_weighted(node, module, weights):
            weights.add(node)
    return level


def _is_weighted(node: fx.Node, module: fx.GraphModule, weights: Collection[fx.Node]) -> bool:
    """Whether a node is a parameter, or computes with parameters or what follows from them (standardised weights)."""
    if node.op == "get_attr":
        return isinstance(attribute(module, str(node.target)), nn.Parameter)
    return any(True for _ in parameters_of(node, module)) or any(source in weights for source in node.all_input_nodes)


def _is_tuple(node: fx.Node, shapes: Mapping[fx.Node, tuple[int, ...]]) -> bool:
    """Whether a node is a tuple of tensors, from chunk, split, unbind, or attention that also returns its weights."""
    return any(user in shapes and user.target in (operator.getitem, getattr) for user in node.users)
