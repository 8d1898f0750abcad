"""Cut a part out of a traced network: the part up to some nodes, and the part from them to another, without hooks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from pipeline.graph.nested import with_tensors
from pipeline.graph.surgery import copied, has_effect, remove_unneeded
from store.errors import UsageError


@dataclass(frozen=True)
class Parts:
    """A network in two parts.

    `prefix` maps a batch of pictures to a list: the values of the nodes at which the network was cut, then what the
    second part needs besides (a residual branch that goes around a node, a size), whose nodes are named in `beside`.
    `rest` takes such a list. It runs on copies if it changes anything in place. Both share the network's parameters.
    """

    prefix: fx.GraphModule
    rest: fx.GraphModule
    beside: tuple[str, ...]


def split(module: fx.GraphModule, names: Sequence[str], end: str = "") -> Parts:
    """Cut a network at the nodes `names`. The second part goes from them to the node `end`, or to the output.

    Raises UsageError if there is no such node, or if the end depends on none of the nodes.
    """
    by_name = {node.name: node for node in module.graph.nodes}
    output = next(iter(reversed(module.graph.nodes)))
    for name in (*names, end):
        if name and name not in by_name:
            raise UsageError(f"{name}: no such node in this graph")
    starts = [by_name[name] for name in names]
    last = by_name[end] if end else output
    after = _after(module, starts)
    if last not in after:
        what = "the network's output" if last is output else f"node {end}"
        raise UsageError(f"{', '.join(names)}: {what} does not depend on this node")
    if last is not output:
        order = list(module.graph.nodes)
        after &= set(order[: order.index(last) + 1])
    beside = list(
        dict.fromkeys(
            source
            for node in module.graph.nodes
            if node in after
            for source in node.all_input_nodes
            if source not in after and source not in starts and source.op != "get_attr"
        )
    )
    return Parts(
        _first(module, [*starts, *beside]),
        _second(module, [*starts, *beside], after, last),
        tuple(node.name for node in beside),
    )


def _after(module: fx.GraphModule, starts: Sequence[fx.Node]) -> set[fx.Node]:
    """Return the nodes that depend on one of `starts`, without these."""
    found = set(starts)
    for node in module.graph.nodes:
        if any(source in found for source in node.all_input_nodes):
            found.add(node)
    return found - set(starts)


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


def _second(module: fx.GraphModule, given: Sequence[fx.Node], after: set[fx.Node], last: fx.Node) -> fx.GraphModule:
    graph = fx.Graph()
    values = graph.placeholder("values")
    in_place = any(has_effect(node, module) for node in after if node.op != "output")
    copy = graph.call_function(copies, (values,)) if in_place else values
    new: dict[fx.Node, fx.Node] = {node: graph.call_function(item, (copy, index)) for index, node in enumerate(given)}
    for node in module.graph.nodes:
        if node.op == "get_attr" and any(user in after for user in node.users):
            new[node] = graph.node_copy(node)
        elif node in after:
            new[node] = graph.node_copy(node, lambda old: new[old])
    if last.op != "output":
        graph.output(new[last])
    tail = fx.GraphModule(module, graph, f"After_{given[0].name}")
    if last.op != "output":
        remove_unneeded(tail, [new[last]])
    tail.graph.lint()
    return tail


def copies(values: Any) -> Any:
    """Return a value with each of its tensors copied. Gradients flow through the copies."""
    return with_tensors(values, torch.clone)


def item(values: Sequence[Any], index: int) -> Any:
    """Return a value of the list that the second part takes."""
    return values[index]
