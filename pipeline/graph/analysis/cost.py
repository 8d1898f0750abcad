"""What it costs to run a network up to a layer and back: for cutting work into even shards, never for results.

Seconds a step and picture of a visualization, measured on 24 layers of four networks (EfficientNet-Lite0, ResNet-18,
GoogLeNet, VGG-11; one CPU core, 128 px): a multiply-accumulate, 111 times that for a value that a node puts out, and a
constant, fit all within a quarter, while they differ by up to 25 times. The sizes follow from the graph alone, so that
shards are cut alike on every machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

from torch import fx, nn

VALUE = 111  # multiply-accumulates that take as long as writing one value and reading it back
STEP = 366_000_000  # and as long as what every step costs: picture, transforms, optimizer


def of_nodes(module: fx.GraphModule, shapes: Mapping[fx.Node, tuple[int, ...]]) -> dict[fx.Node, int]:
    """Each node's own cost in multiply-accumulates, for one picture."""
    return {node: _own(module, node, shapes.get(node, ())) for node in module.graph.nodes}


def _own(module: fx.GraphModule, node: fx.Node, shape: tuple[int, ...]) -> int:
    values = prod(shape[1:]) if shape else 0
    each = 0
    if node.op == "call_module":
        inner = module.get_submodule(str(node.target))
        if isinstance(inner, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
            each = inner.weight[0].numel()
        elif isinstance(inner, nn.Linear):
            each = inner.in_features
    return values * (each + VALUE)


def up_to(node: fx.Node, own: Mapping[fx.Node, int]) -> int:
    """What a step costs that reaches `node` from the picture."""
    seen: set[fx.Node] = set()
    todo = [node]
    while todo:
        here = todo.pop()
        if here not in seen:
            seen.add(here)
            todo += here.all_input_nodes
    return STEP + sum(own[one] for one in seen)
