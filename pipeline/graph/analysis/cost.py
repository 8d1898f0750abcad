"""Estimate the cost of running a network up to a layer and back. It serves to cut even shards and changes no result.

The cost of a step of a visualization is its multiply-accumulates, plus 111 for each value that a node puts out, plus a
constant. This was fitted to the seconds per step and picture of 24 layers of four networks (EfficientNet-Lite0,
ResNet-18, GoogLeNet, VGG-11; one CPU core, 128 px). It fits all of them within a quarter, while they differ by up to a
factor of 25. It depends on the graph alone, so that shards are cut alike on every machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

from torch import fx, nn

VALUE = 111  # multiply-accumulates that take as long as writing and reading back one value
STEP = 366_000_000  # the same for the fixed cost of a step: picture, transforms, optimizer


def of_nodes(module: fx.GraphModule, shapes: Mapping[fx.Node, tuple[int, ...]]) -> dict[fx.Node, int]:
    """Return each node's own cost for one picture, in multiply-accumulates."""
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
    """Return the cost of a step that computes `node` from the picture: the nodes it needs, and the constant."""
    seen: set[fx.Node] = set()
    todo = [node]
    while todo:
        here = todo.pop()
        if here not in seen:
            seen.add(here)
            todo += here.all_input_nodes
    return STEP + sum(own[needed] for needed in seen)
