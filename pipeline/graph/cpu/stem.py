"""Split a network in two, so that the first part, where maps are large, can run on a few pictures at a time.

In a network for photographs, the maps of the first layers are tens of times larger than those of the last layers. A
batch that is large enough for the last layers takes hundreds of megabytes in the first. That gains nothing, because the
weights of the first layers are small, and the maps of only four pictures stay closer to the processor.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import fx

from pipeline.graph.surgery import copied

STEM_BATCH = 4  # pictures that the first part takes at a time
SMALL = 4  # maps of the second part are at least this many times smaller than the largest


def split_stem(module: fx.GraphModule, sizes: Mapping[str, int]) -> tuple[fx.GraphModule, fx.GraphModule] | None:
    """Split at the first point where a single tensor crosses, after the large maps.

    Returns the part before that point and the part after it, which takes the tensor; or None if there is no such point.
    The first axis of the tensor must be the batch, and it must not be the output. `sizes`: the number of values per
    picture of each node whose first axis is the batch.
    """
    nodes = list(module.graph.nodes)
    position = {node: i for i, node in enumerate(nodes)}
    large = max(sizes.values(), default=0) // SMALL
    first = max((i for i, node in enumerate(nodes) if sizes.get(node.name, 0) > large), default=len(nodes)) + 1
    needed = -1  # index of the last node that uses a node before this one
    for i, node in enumerate(nodes[:-1]):
        if i >= first and needed <= i and node.name in sizes and nodes[-1] not in node.users:
            return _until(module, node.name), _after(module, node.name)
        needed = max([needed, *(position[user] for user in node.users)])
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
