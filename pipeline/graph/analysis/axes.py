"""Infer the role of each axis of each node's output, from the weights that produce and consume it.

Roles: n is the batch, c the channels, h the rows and w the columns of the picture's map, t other positions of it (a
flattened grid, windows, offsets in a window), and ? anything else. The rules are:

- A convolution, batch norm or group norm has c at axis 1. A linear layer or layer norm has it at the last axis.
- Positions are never assumed: only the picture has them, and every operation passes on what it keeps.
- A permutation moves the roles. A reshape splits and joins axes (`axis.regrouped`).
- Elementwise operations, pooling and padding inherit the roles on which their inputs agree.
"""

from collections.abc import Callable, Mapping, Sequence

from torch import fx

from pipeline.graph.analysis.axis import PLACES, Axes, batch_only, whole
from pipeline.graph.analysis.axis_rules import Sizes, after, weight_axis
from pipeline.graph.analysis.shapes import Shapes
from pipeline.graph.layer import Layout
from pipeline.graph.ops import CUSTOM, Op


def infer(
    module: fx.GraphModule,
    ops: Mapping[fx.Node, Op],
    found: Shapes,
    logits: fx.Node | None = None,
    elsewhere: Callable[[], Sizes] = dict,
) -> dict[fx.Node, Axes]:
    """Infer the axes of every tensor, or tuple of tensors, that depends on the picture.

    If a module hides its channel axis, a second pass takes the axis from the node's consumers, or else from what a
    picture of another size does not change. `elsewhere` returns the shapes for one, or none if the network takes none.
    `logits` are [n, classes], whatever computes them.
    """
    shapes = found.of
    axes = _pass(module, ops, found, {})
    hints = _hints(axes, ops, shapes)
    hidden = [node for node in axes if node in shapes and _is_hidden(node, ops[node], axes[node])]
    if hidden:
        others = elsewhere()
        for node in hidden:
            told = _from_sizes(module, node, shapes, others)
            if ops[node].module is not None or set(PLACES) <= set(told.values()):
                hints.setdefault(node, {}).update(told)
    if hints:
        axes = _pass(module, ops, found, hints)
    if logits is not None:
        axes[logits] = Axes((whole("n", shapes[logits][0]), whole("c", shapes[logits][1])))
    return axes


def _pass(
    module: fx.GraphModule, ops: Mapping[fx.Node, Op], found: Shapes, hints: Mapping[fx.Node, Mapping[int, str]]
) -> dict[fx.Node, Axes]:
    axes: dict[fx.Node, Axes] = {}
    shapes = found.of
    for node in module.graph.nodes:
        if node.op == "placeholder":
            axes[node] = Axes(tuple(whole(*pair) for pair in zip("nchw", shapes[node], strict=False)))
        elif node.op in ("call_module", "call_function", "call_method"):
            node_axes = after(node, ops[node], axes, found)
            if node_axes is None:
                continue
            if node in shapes:
                node_axes = _settled(node_axes, shapes[node], hints.get(node, {}))
            axes[node] = node_axes
    return axes


def _settled(node_axes: Axes, shape: Sequence[int], hints: Mapping[int, str]) -> Axes:
    """Fit axes to the sizes of a tensor, take hints about those that are unknown, and number a coarser map anew."""
    if len(node_axes.axes) != len(shape):
        node_axes = batch_only(node_axes, len(shape))
    node_axes = node_axes.fitted(shape)
    for at, letter in hints.items():
        if node_axes.roles[at] == "?" and letter not in node_axes.roles:
            node_axes = node_axes.put(at, whole(letter, shape[at]))
    node_axes = _eliminate(node_axes, shape)
    for at, letter in enumerate(node_axes.roles):
        if letter in PLACES and sum(letter in other.letters for other in node_axes.axes) == 1:
            node_axes = node_axes.put(at, whole(letter, shape[at]))
    return node_axes


def _hints(axes: Mapping[fx.Node, Axes], ops: Mapping[fx.Node, Op], shapes: Sizes) -> dict[fx.Node, dict[int, str]]:
    """Return the axis that the next weight works on, for modules that are single nodes and hide their channel axis."""
    hints: dict[fx.Node, dict[int, str]] = {}
    for node, node_axes in axes.items():
        op = ops.get(node)
        if op is None or op.module is None or "c" in node_axes.roles or node not in shapes:
            continue
        for user in node.users:
            axis = weight_axis(ops[user], len(shapes[node])) if user.op != "output" else None
            if axis is not None:
                hints[node] = {axis: "c"}
    return hints


def _is_hidden(node: fx.Node, op: Op, node_axes: Axes) -> bool:
    """Whether a module hides the channels or the positions of its output, or a model's own function the positions."""
    if len(node_axes.roles) < 3:
        return False
    if op.module is not None:
        return "c" not in node_axes.roles or (op.kind.startswith(CUSTOM) and node_axes.places is None)
    written = getattr(node.target, "__module__", None) or "torch"
    foreign = node.op == "call_function" and written.partition(".")[0] not in ("torch", "_operator", "math", "builtins")
    return foreign and node_axes.places is None


def _from_sizes(module: fx.GraphModule, node: fx.Node, shapes: Sizes, others: Sizes) -> dict[int, str]:
    """Tell a node's axes by how their sizes change with the picture's: not, with its height alone, or its width."""
    picture = next(n for n in module.graph.nodes if n.op == "placeholder")
    if node not in others or len(others[node]) != len(shapes[node]):
        return {}
    letters = {}
    for at, (size, other) in enumerate(zip(shapes[node], others[node], strict=True)):
        if at:
            ratios = [others[picture][axis] / shapes[picture][axis] for axis in (2, 3)]
            follows = [letter for letter, ratio in zip("hw", ratios, strict=True) if abs(size * ratio - other) < 1]
            if size == other or len(follows) == 1:
                letters[at] = "c" if size == other else follows[0]
    return {at: letter for at, letter in letters.items() if list(letters.values()).count(letter) == 1}


def _eliminate(node_axes: Axes, shape: Sequence[int]) -> Axes:
    """If the batch and the positions are known and one axis is left, make it the channel axis.

    Merged attention heads and shuffled channels need this.
    """
    roles = node_axes.roles
    rest = roles[1:].replace("?", "", 1)
    known = roles.startswith("n") and "?" in roles and "?" not in rest and "c" not in rest
    if known and len(roles) in (3, 4) and (node_axes.places or rest == "t"):
        return node_axes.put(roles.index("?"), whole("c", shape[roles.index("?")]))
    return node_axes


def layouts(node_axes: Axes, shape: Sequence[int], batch: int) -> list[tuple[Layout, int, int, int]]:
    """Return (layout, channels, height, width) of each layer of a node: its output, and its prefix tokens, if any.

    There is none if the first axis is not a batch of `batch` pictures or the channel axis is unknown.
    """
    if not shape or shape[0] != batch or "c" not in node_axes.roles or node_axes.roles.index("c") == 0 or 0 in shape:
        return []
    axis = node_axes.roles.index("c")
    channels = shape[axis]
    if len(shape) == 2:
        return [(Layout(axis, "vector"), channels, 1, 1)]
    if len(shape) > 4 or (len(shape) == 4 and axis == 2):
        return []
    kind = "tokens" if len(shape) == 3 else "nchw" if axis == 1 else "nhwc"
    positions = [a for i, a in enumerate(node_axes.axes) if i not in (0, axis) and shape[i] > 1]
    if not all(a.of_places for a in positions) or node_axes.places is None:
        sizes = [size for i, size in enumerate(shape) if i not in (0, axis)]
        height, width = sizes if len(sizes) == 2 else (1, sizes[0])
        return [(Layout(axis, kind, spatial=height * width == 1), channels, height, width)]
    parts = [part for a in positions for part in a.parts]
    order = tuple(sorted(range(len(parts)), key=lambda i: (parts[i].letter, -parts[i].stride)))
    in_order = order == (0, 1) and len(parts) - len(positions) == 4 - len(shape)
    digits = () if in_order else tuple((parts[i].size, order[i]) for i in range(len(parts)))
    result = [(Layout(axis, kind, node_axes.prefix, digits=digits), channels, *node_axes.places)]
    if node_axes.prefix:
        result.append((Layout(axis, kind, node_axes.prefix, only_prefix=True), channels, 1, 1))
    return result
