"""Choose the default layers, "blocks": the outputs of a network's building blocks, which people look at first."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod

from torch import fx, nn

from pipeline.graph.analysis.axis import Axes
from pipeline.graph.ops import TRANSPARENT, Op, argument

Shapes = Mapping[fx.Node, tuple[int, ...]]
# A convolution ends a block if any consumer is not an activation, a norm, an add, a mul or a cat along channels.
_SCALES = frozenset({"mul", "div", "add", "sub", "mean", "norm", "addcmul", "sqrt", "square", "pow"})
_LINEAR = frozenset({"conv", "add"})
_TAKES_PART = frozenset({"add", "mul", "cat"})


@dataclass(frozen=True)
class View:
    """What the rule looks at. `depends` is 2 if a node depends on the picture through a weight (see `dependence`)."""

    nodes: tuple[fx.Node, ...]
    ops: Mapping[fx.Node, Op]
    shapes: Shapes
    axes: Mapping[fx.Node, Axes]
    depends: Mapping[fx.Node, int]


def choose(view: View, logits: str | None) -> set[fx.Node]:
    """Return the nodes of "blocks", among those that depend on the picture through a weight.

    These are activations, concatenations along channels (unless only norms use them), residual sums, convolutions that
    end a block or the norms on them, and the node named `logits`. A sum of parallel linear branches is no residual sum,
    nor is one that only activations use, perhaps after further sums. Depthwise convolutions and gates are left out, and
    so is a node that is only concatenated.
    """
    gates = _gates(view)
    chosen: set[fx.Node] = set()
    ends: set[fx.Node] = set()
    for node in view.nodes:
        if view.depends.get(node, 0) < 2 or node in gates or node not in view.shapes:
            continue
        op = view.ops[node]
        users = list(_consumers(node, view))
        if op.activation:
            chosen.add(node)
        elif op.kind == "cat" and _along_channels(node, view):
            if not all(view.ops[user].norm for user in users):
                chosen.add(node)
        elif op.kind == "add" and _residual(node, view) and not _only_activated(node, view):
            chosen.add(node)
        elif op.kind == "conv" and not _depthwise(op.module):
            normed = [user for user in users if user in view.ops and _plain_norm(view.ops[user])]
            ends.update(end for end in (node, *normed) if _is_end(end, view))
    chosen = {node for node in chosen if not _only_catenated(node, view)} | ends
    return chosen | {node for node in view.nodes if node.name == logits}


def _consumers(node: fx.Node, view: View) -> Iterator[fx.Node]:
    """Yield the nodes that work on a node's output; look through those that only pass it on (dropout, reshape)."""
    for user in node.users:
        if user.op == "output":
            yield user
        elif view.ops[user].kind in TRANSPARENT and user in view.shapes:
            yield from _consumers(user, view)
        elif user in view.shapes or view.depends.get(user, 0):
            yield user


def _is_part(user: fx.Node, view: View) -> bool:
    op = view.ops[user]
    if op.kind == "cat":
        return _along_channels(user, view)
    return op.activation or op.norm or op.kind in _TAKES_PART


def _is_end(node: fx.Node, view: View) -> bool:
    """Whether anything outside the block uses the output of a convolution, or of the norm on it."""
    return any(not _is_part(user, view) for user in _consumers(node, view))


def _plain_norm(op: Op) -> bool:
    return op.norm and not op.activation


def _along_channels(node: fx.Node, view: View) -> bool:
    node_axes, dim = view.axes.get(node), argument(node, 1, "dim", 0)
    return node_axes is not None and isinstance(dim, int) and node_axes.roles[dim] == "c"


def _residual(node: fx.Node, view: View) -> bool:
    inputs = [source for source in node.all_input_nodes if view.depends.get(source, 0)]
    if len(inputs) != 2 or any(view.shapes.get(source) != view.shapes[node] for source in inputs):
        return False
    return not any(_is_scaled(a, b, view) for a, b in (inputs, inputs[::-1])) and not _parallel(inputs, view)


def _parallel(summands: Sequence[fx.Node], view: View) -> bool:
    """Whether two summands are linear branches of one input, and neither is that input (RepVGG, FastViT, MobileOne)."""
    first, second = summands
    reached = [_linear_sources(node, view) for node in summands]
    return first not in reached[1] and second not in reached[0] and bool(reached[0] & reached[1])


def _linear_sources(node: fx.Node, view: View) -> set[fx.Node]:
    """Return the nodes from which only convolutions, norms and sums lead to a node, with that node."""
    reached, waiting = {node}, [node]
    while waiting:
        current = waiting.pop()
        op = view.ops[current]
        if op.kind in _LINEAR or op.kind in TRANSPARENT or _plain_norm(op):
            fresh = {source for source in current.all_input_nodes if view.depends.get(source, 0)} - reached
            reached |= fresh
            waiting += fresh
    return reached


def _is_scaled(node: fx.Node, other: fx.Node, view: View) -> bool:
    """Whether a node is only `other`, scaled and shifted by parameters and by what `other` is on average (GRN)."""
    reached, waiting = {node}, [node]
    while waiting:
        current = waiting.pop()
        if current is other:
            continue
        if current.op == "get_attr" or not view.depends.get(current, 0):
            continue
        if current not in view.ops or view.ops[current].kind not in _SCALES:
            return False
        waiting += [source for source in current.all_input_nodes if source not in reached]
        reached.update(current.all_input_nodes)
    return other in reached and node is not other


def _only_activated(node: fx.Node, view: View) -> bool:
    """Whether all consumers are activations, or sums of which that is true."""
    users = list(_consumers(node, view))
    return all(
        (view.ops[user].activation and not view.ops[user].norm)
        or (user in view.ops and view.ops[user].kind == "add" and bool(user.users) and _only_activated(user, view))
        for user in users
    )


def _depthwise(module: nn.Module | None) -> bool:
    groups, width = getattr(module, "groups", 1), getattr(module, "in_channels", 0)
    return bool(groups > 1 and groups == width)


def _only_catenated(node: fx.Node, view: View) -> bool:
    """Whether all consumers are concatenations, which then have the same units."""
    users = list(_consumers(node, view))
    return bool(users) and all(user in view.ops and view.ops[user].kind == "cat" for user in users)


def _gates(view: View) -> set[fx.Node]:
    """Return the smaller operands of broadcasting products, and the nodes that only serve to compute them."""
    gates: set[fx.Node] = set()
    products: dict[fx.Node, fx.Node] = {}
    for node in view.nodes:
        if view.ops[node].kind == "mul" and node in view.shapes:
            for source in node.all_input_nodes:
                if source in view.shapes and prod(view.shapes[source]) < prod(view.shapes[node]):
                    gates.add(source)
                    products[source] = node
    for node in reversed(view.nodes):
        feeds_product = any(view.ops[user].kind == "mul" and user in products.values() for user in node.users)
        if node not in gates and node.users and not feeds_product and all(user in gates for user in node.users):
            gates.add(node)
    return gates
