"""Split a traced network at one node: the part up to it, and the part from it to the output, without hooks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from pipeline.graph.nested import with_tensors
from pipeline.graph.surgery import copied, has_effect, remove_unneeded
from store.errors import UsageError


def split(module: fx.GraphModule, name: str) -> tuple[fx.GraphModule, fx.GraphModule, tuple[str, ...]]:
    """Return the part of a network up to the node `name`, the part after it, and the nodes that lead around it.

    The first maps a batch of pictures to a list: the node's value, then what the second part needs of the network
    besides it (a residual branch that goes around the node, a size), in the order of these nodes. The second takes such
    a list, and returns what the network returns. It runs on copies if it changes anything in place. Both share the
    network's parameters. Raises UsageError if there is no such node, or if the output does not depend on it.
    """
    start = next((node for node in module.graph.nodes if node.name == name), None)
    output = next(iter(reversed(module.graph.nodes)))
    if start is None:
        raise UsageError(f"{name}: no such node in this graph")
    after = _after(module, start)
    if output not in after:
        raise UsageError(f"{name}: the network's output does not depend on this node")
    beside = list(
        dict.fromkeys(
            source
            for node in module.graph.nodes
            if node in after
            for source in node.all_input_nodes
            if source not in after and source is not start and source.op != "get_attr"
        )
    )
    return (
        _first(module, [start, *beside]),
        _second(module, start, beside, after),
        tuple(node.name for node in beside),
    )


def _after(module: fx.GraphModule, start: fx.Node) -> set[fx.Node]:
    """Return the nodes that depend on `start`."""
    found = {start}
    for node in module.graph.nodes:
        if any(source in found for source in node.all_input_nodes):
            found.add(node)
    return found - {start}


def _first(module: fx.GraphModule, wanted: Sequence[fx.Node]) -> fx.GraphModule:
    fresh = copied(module)
    nodes = {node.name: node for node in fresh.graph.nodes}
    kept: list[fx.Node] = []
    for node in wanted:
        here = nodes[node.name]
        with fresh.graph.inserting_after(here):
            kept.append(fresh.graph.call_function(copies, (here,)))
    next(iter(reversed(fresh.graph.nodes))).args = (kept,)
    remove_unneeded(fresh, kept)
    return fresh


def _second(module: fx.GraphModule, start: fx.Node, beside: Sequence[fx.Node], after: set[fx.Node]) -> fx.GraphModule:
    graph = fx.Graph()
    given = graph.placeholder("values")
    in_place = any(has_effect(node, module) for node in after if node.op != "output")
    copy = graph.call_function(copies, (given,)) if in_place else given
    new: dict[fx.Node, fx.Node] = {
        node: graph.call_function(_item, (copy, index)) for index, node in enumerate([start, *beside])
    }
    for node in module.graph.nodes:
        if node.op == "get_attr" and any(user in after for user in node.users):
            new[node] = graph.node_copy(node)
        elif node in after:
            new[node] = graph.node_copy(node, lambda old: new[old])
    tail = fx.GraphModule(module, graph, f"After_{start.name}")
    tail.graph.lint()
    return tail


def copies(values: Any) -> Any:
    """Return a value with each of its tensors copied. Gradients flow through the copies."""
    return with_tensors(values, torch.clone)


def _item(values: Sequence[Any], index: int) -> Any:
    return values[index]
