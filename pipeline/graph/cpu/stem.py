"""A network in two halves: the first, where maps are large, is run on a few pictures at a time.

The first layers of a network for photographs put out maps tens of times as large as the last ones do. A batch that is
large enough for these has hundreds of megabytes in flight in those, for no gain: their weights are small, and what four
pictures need stays nearer to the processor.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import fx

from pipeline.graph.surgery import copied

STEM_BATCH = 4  # pictures that the first half takes at a time
SMALL = 4  # times smaller than the largest are the maps of the second


def split_stem(module: fx.GraphModule, sizes: Mapping[str, int]) -> tuple[fx.GraphModule, fx.GraphModule] | None:
    """The network up to where one tensor alone is handed on and all that follow are small, and the rest, which takes
    that tensor; None where there is no such place. `sizes`: values a picture of the nodes that have pictures along
    their first axis."""
    nodes = list(module.graph.nodes)
    place = {node: i for i, node in enumerate(nodes)}
    large = max(sizes.values(), default=0) // SMALL
    first = max((i for i, node in enumerate(nodes) if sizes.get(node.name, 0) > large), default=len(nodes)) + 1
    needed = -1  # the last node that needs one before this
    for i, node in enumerate(nodes[:-1]):
        if i >= first and needed <= i and node.name in sizes and nodes[-1] not in node.users:
            return _until(module, node.name), _after(module, node.name)
        needed = max([needed, *(place[user] for user in node.users)])
    return None


def _until(module: fx.GraphModule, name: str) -> fx.GraphModule:
    fresh = copied(module)
    nodes = list(fresh.graph.nodes)
    (cut,) = (i for i, node in enumerate(nodes) if node.name == name)
    nodes[-1].args = (nodes[cut],)
    return _without(fresh, nodes[cut + 1 : -1])


def _after(module: fx.GraphModule, name: str) -> fx.GraphModule:
    fresh = copied(module)
    nodes = list(fresh.graph.nodes)
    (cut,) = (i for i, node in enumerate(nodes) if node.name == name)
    with fresh.graph.inserting_before(nodes[0]):
        nodes[cut].replace_all_uses_with(fresh.graph.placeholder("handed_on"))
    return _without(fresh, nodes[: cut + 1])


def _without(module: fx.GraphModule, nodes: list[fx.Node]) -> fx.GraphModule:
    for node in reversed(nodes):
        module.graph.erase_node(node)
    module.delete_all_unused_submodules()
    module.recompile()
    return module
