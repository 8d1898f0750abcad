"""Shapes of every node's output, from fake tensors if these suffice, and how each depends on the picture."""

from typing import Any

import torch
from torch import Tensor, fx

from pipeline.compat.fx import fake_tensors
from pipeline.graph.ops import parameters_of
from store.errors import UsageError

BATCH = 2  # not 1, to tell a batch axis from the leading 1 of a parameter


class _Recorder(fx.Interpreter):
    def __init__(self, module: fx.GraphModule):
        super().__init__(module, garbage_collect_values=True)
        self.shapes: dict[fx.Node, tuple[int, ...]] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, Tensor) and value.is_floating_point():
            self.shapes[n] = tuple(int(size) for size in value.shape)
        return value


def propagate(module: fx.GraphModule, input_shape: tuple[int, ...]) -> dict[fx.Node, tuple[int, ...]]:
    """Return the shape of each node that is a floating-point tensor, for a batch of BATCH pictures.

    input_shape: [1, C, H, W]. Raises UsageError if the network does not run on a picture of that shape.
    """
    recorder = _Recorder(module)
    size = (BATCH, *input_shape[1:])
    # The picture takes the dtype and device of the weights: a network can be float64, and on any device.
    like = next((p for p in module.parameters() if p.is_floating_point()), torch.empty(0))
    try:
        with torch.no_grad(), fake_tensors():
            recorder.run(torch.empty(size, device=like.device, dtype=like.dtype))
    except Exception:  # an operator without a fake implementation: compute for real
        recorder = _Recorder(module)
        try:
            with torch.no_grad():
                recorder.run(torch.zeros(size, device=like.device, dtype=like.dtype))
        except Exception as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UsageError(f"the network does not run on a picture of shape {size[1:]}: {reason}") from error
    return recorder.shapes


def dependence(module: fx.GraphModule, shapes: dict[fx.Node, tuple[int, ...]]) -> dict[fx.Node, int]:
    """Return for each node: 0 if it depends on the picture's size at most, 1 on the picture, 2 through a weight."""
    level: dict[fx.Node, int] = {}
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
        elif level[node] == 1 and any(True for _ in parameters_of(node, module)):
            level[node] = 2
    return level


def _is_tuple(node: fx.Node, shapes: dict[fx.Node, tuple[int, ...]]) -> bool:
    """Whether a node is a tuple of tensors, from chunk, split, unbind, or attention that also returns its weights."""
    return any(user in shapes and getattr(user.target, "__name__", "") == "getitem" for user in node.users)
