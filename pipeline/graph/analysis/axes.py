"""Infer the role of each axis of each node's output, from the weights that produce and consume it.

Roles: n is the batch, c the channels, h the height, w the width, t tokens (a flattened grid, after any prefix tokens),
and ? anything else. The rules are:

- A convolution, batch norm or group norm has c at axis 1. A linear layer or layer norm has it at the last axis.
- A permutation moves the roles.
- A reshape keeps the role of an axis if its size, and the product of the sizes before it, stay the same.
- Elementwise operations, pooling and padding inherit the roles on which their inputs agree.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from torch import fx

from pipeline.graph.layer import Layout
from pipeline.graph.ops import CUSTOM, MATMULS, NORMS, PERMUTES, RESHAPES, Op, argument, data_input

Shapes = Mapping[fx.Node, tuple[int, ...]]


# These move or make axes in ways that are not followed; weights after them show the channels again.
_MOVING = frozenset({"einsum", "tensordot", "movedim", "moveaxis", "rot90", "getattr", "unfold", "fold", "asstrided"})


@dataclass(frozen=True)
class Axes:
    """One role letter per axis. For tokens: height and width of the patch grid, and the number of tokens before it."""

    roles: str
    grid: tuple[int, int] | None = None
    prefix: int = 0

    @property
    def known(self) -> int:
        return len(self.roles) - self.roles.count("?")


def infer(
    module: fx.GraphModule,
    ops: Mapping[fx.Node, Op],
    shapes: Shapes,
    logits: fx.Node | None = None,
    elsewhere: Callable[[], Shapes] = dict,
) -> dict[fx.Node, Axes]:
    """Infer the axes of every tensor, or tuple of tensors, that depends on the picture.

    If a module hides its channel axis, a second pass takes the axis from the node's consumers, or else from what a
    picture of another size does not change. `elsewhere` returns the shapes for one, or none if the network takes none.
    `logits` are [n, classes], whatever computes them.
    """
    axes = _pass(module, ops, shapes, {})
    hints = _hints(axes, ops, shapes)
    hidden = [node for node in axes if node in shapes and node not in hints and _is_hidden(ops[node], axes[node])]
    if hidden:
        others = elsewhere()
        for node in hidden:
            kept = [i for i, size in enumerate(shapes[node]) if i and others.get(node, ())[i : i + 1] == (size,)]
            if len(kept) == 1 and len(others[node]) == len(shapes[node]):
                hints[node] = kept[0]
    if hints:
        axes = _pass(module, ops, shapes, hints)
    if logits is not None:
        axes[logits] = Axes("nc")
    return axes


def _pass(
    module: fx.GraphModule, ops: Mapping[fx.Node, Op], shapes: Shapes, hints: Mapping[fx.Node, int]
) -> dict[fx.Node, Axes]:
    axes: dict[fx.Node, Axes] = {}
    for node in module.graph.nodes:
        if node.op == "placeholder":
            axes[node] = Axes("nchw"[: len(shapes[node])])
        elif node.op in ("call_module", "call_function", "call_method"):
            node_axes = _step(node, ops[node], axes, shapes)
            if node_axes is not None:
                if node in shapes and len(node_axes.roles) != len(shapes[node]):
                    node_axes = Axes(node_axes.roles[:1][: len(shapes[node])].ljust(len(shapes[node]), "?"))
                if node in hints and "c" not in node_axes.roles:
                    node_axes = replace(node_axes, roles=_put(node_axes.roles, hints[node], "c"))
                axes[node] = _eliminate(node_axes) if node in shapes else node_axes
    return axes


def _hints(axes: Mapping[fx.Node, Axes], ops: Mapping[fx.Node, Op], shapes: Shapes) -> dict[fx.Node, int]:
    """Return the axis that the next weight works on, for modules that are single nodes and hide their channel axis."""
    hints: dict[fx.Node, int] = {}
    for node, node_axes in axes.items():
        op = ops.get(node)
        if op is None or op.module is None or "c" in node_axes.roles or node not in shapes:
            continue
        for user in node.users:
            axis = _weight_axis(ops[user], len(shapes[node])) if user.op != "output" else None
            if axis is not None:
                hints[node] = axis
    return hints


def _is_hidden(op: Op, node_axes: Axes) -> bool:
    """Whether a node is a module that does not show which axis of its output has the channels."""
    return op.module is not None and "c" not in node_axes.roles and len(node_axes.roles) > 2


def _weight_axis(op: Op, rank: int) -> int | None:
    """Return the channel axis that an operation with weights implies, or None if it implies none."""
    base = next((kind for kind in NORMS if op.norm and op.module and kind in _norm_name(op)), op.kind)
    if base in ("conv", "convtranspose", "batchnorm", "groupnorm", "instancenorm"):
        return 1 if rank > 1 else None
    if base in ("layernorm", "rmsnorm"):
        if op.module is not None and "2d" in type(op.module).__name__.lower():
            return 1
        shape = getattr(op.module, "normalized_shape", (0,))
        return rank - 1 if isinstance(shape, int) or len(shape) == 1 else None
    return rank - 1 if base in ("linear", "multiheadattention") else None


def _norm_name(op: Op) -> str:
    return " ".join(cls.__name__.lower().replace("_", "") for cls in type(op.module).__mro__)


def _step(node: fx.Node, op: Op, axes: Mapping[fx.Node, Axes], shapes: Shapes) -> Axes | None:
    source = data_input(node)
    if source is None or not any(n in axes for n in node.all_input_nodes):
        return None
    if node not in shapes:  # a tuple of tensors
        return _tuple_axes(node, op, axes)
    shape = shapes[node]
    weight_axis = _weight_axis(op, len(shape))
    if weight_axis is not None and source in axes:
        return _weighted(axes[source], op, weight_axis, shapes.get(source, ()), shape)
    if op.kind.startswith(CUSTOM) and source in axes:
        same = shape[:1] == shapes.get(source, ())[:1]
        return Axes((axes[source].roles[:1] if same else "").ljust(len(shape), "?"))
    if op.kind in RESHAPES and source in shapes and source in axes:
        return _reshaped(axes[source], shapes[source], shape)
    if op.kind in PERMUTES and source in axes:
        return _permuted(node, op, axes[source], len(shape))
    if op.kind in MATMULS and source in axes:
        return replace(axes[source], roles=axes[source].roles[: len(shape) - 1].ljust(len(shape), "?"))
    if op.kind in _MOVING:
        return Axes("?" * len(shape))
    if op.kind == "getitem" and source in axes:
        return _indexed(node, axes[source], source in shapes)
    if op.kind == "cat":
        return _concatenated(node, axes, shapes)
    return _inherited(node, op, axes, shapes)


def _tuple_axes(node: fx.Node, op: Op, axes: Mapping[fx.Node, Axes]) -> Axes | None:
    source = data_input(node)
    if source is None or source not in axes or op.kind in ("size", "getattr", "dim", "assert", "eq"):
        return None
    node_axes = axes[source]
    if op.kind == "unbind":
        dim = int(argument(node, 1, "dim", 0)) % len(node_axes.roles)
        return replace(node_axes, roles=node_axes.roles[:dim] + node_axes.roles[dim + 1 :])
    if op.kind == "multiheadattention":
        return replace(node_axes, roles=_put(node_axes.roles, -1, "c"))
    if op.kind in ("chunk", "split", "tensorsplit"):
        return node_axes
    return replace(node_axes, roles=node_axes.roles[:1].ljust(len(node_axes.roles), "?"))


def _weighted(node_axes: Axes, op: Op, axis: int, before: Sequence[int], shape: Sequence[int]) -> Axes:
    if op.kind in ("conv", "convtranspose"):
        roles = "nchw" if len(shape) == 4 else "nct" if len(shape) == 3 else "nc" + "?" * (len(shape) - 2)
        same = tuple(before[2:]) == tuple(shape[2:])
        return Axes(roles, node_axes.grid if same else None, node_axes.prefix if same else 0)
    roles = node_axes.roles
    if op.kind == "linear" and "c" in roles[:-1]:
        return Axes(roles[:-1] + "?")  # mixes tokens (MLP-Mixer): the channels stay where they are
    if axis == 1 and len(shape) == 4:
        return Axes("nchw")
    return replace(node_axes, roles=_put(roles, axis, "c"))


def _put(roles: str, axis: int, role: str) -> str:
    letters = ["?" if letter == role else letter for letter in roles]
    letters[axis] = role
    return "".join(letters)


def _eliminate(node_axes: Axes) -> Axes:
    """If the batch and the positions are known and one axis is left, make it the channel axis.

    Merged attention heads and shuffled channels need this.
    """
    roles = node_axes.roles
    has_positions = roles.count("h") + roles.count("w") == 2 or roles.count("t") == 1
    if "c" not in roles and roles.startswith("n") and roles.count("?") == 1 and has_positions and len(roles) in (3, 4):
        return replace(node_axes, roles=roles.replace("?", "c"))
    return node_axes


def _reshaped(node_axes: Axes, before: Sequence[int], after: Sequence[int]) -> Axes:
    letters = ["?"] * len(after)
    grid, prefix = node_axes.grid, node_axes.prefix
    for i, role in enumerate(node_axes.roles):
        start = prod(before[:i])
        for j, size in enumerate(after):
            if letters[j] != "?" or prod(after[:j]) != start or role == "?":
                continue
            if size == before[i]:
                letters[j] = role
                break
            if node_axes.roles[i : i + 2] == "hw" and size == before[i] * before[i + 1]:
                letters[j], grid, prefix = "t", (before[i], before[i + 1]), 0
                break
            if role == "t" and grid and prefix == 0 and tuple(after[j : j + 2]) == grid:
                letters[j], letters[j + 1] = "h", "w"
                break
    return Axes("".join(letters), grid, prefix)


def _permuted(node: fx.Node, op: Op, node_axes: Axes, rank: int) -> Axes:
    if op.module is not None:
        order = list(getattr(op.module, "dims", range(rank)))
    elif op.kind == "permute":
        given: Any = node.args[1:] or node.kwargs["dims"]
        order = list(given[0] if isinstance(given[0], (list, tuple)) else given)
    else:
        order = list(range(rank))
        default = (0, 1) if op.kind == "t" else (argument(node, 1, "dim0"), argument(node, 2, "dim1"))
        first, second = (int(dim) for dim in default)
        order[first], order[second] = order[second], order[first]
    return replace(node_axes, roles="".join(node_axes.roles[int(dim)] for dim in order))


def _indexed(node: fx.Node, node_axes: Axes, tensor: bool) -> Axes:
    if not tensor:
        return node_axes  # the node is an item of a tuple
    index = node.args[1]
    parts = list(index) if isinstance(index, tuple) else [index]
    if Ellipsis in parts:
        at = parts.index(Ellipsis)
        used = sum(part is not None for part in parts) - 1
        parts[at : at + 1] = [slice(None)] * (len(node_axes.roles) - used)
    roles, prefix, rest = "", node_axes.prefix, list(node_axes.roles)
    for part in parts:
        if part is None:
            roles += "?"
            continue
        role = rest.pop(0)
        if isinstance(part, slice):
            roles += role
            if role == "t" and isinstance(part.start, int) and part.start > 0:
                prefix = max(prefix - part.start, 0)
        elif not isinstance(part, int):
            return Axes("?" * len(node_axes.roles))
    return Axes(roles + "".join(rest), node_axes.grid, prefix)


def _concatenated(node: fx.Node, axes: Mapping[fx.Node, Axes], shapes: Shapes) -> Axes | None:
    """Merge the axes of the inputs. Tokens before the grid (class, register, distillation) become its prefix."""
    inputs = [n for n in node.all_input_nodes if n in shapes]
    merged = _agree([axes[n] for n in inputs if n in axes], len(shapes[node]))
    dim = argument(node, 1, "dim", 0)
    if merged is None or not isinstance(dim, int) or merged.roles[dim] != "t":
        return merged
    before = 0
    for n in inputs:
        node_axes = axes.get(n)
        if node_axes is not None and node_axes.grid is not None and node_axes.roles[dim] == "t":
            return replace(node_axes, prefix=before + node_axes.prefix)
        before += shapes[n][dim]
    return merged


def _inherited(node: fx.Node, op: Op, axes: Mapping[fx.Node, Axes], shapes: Shapes) -> Axes:
    shape = shapes[node]
    inputs = [n for n in node.all_input_nodes if n in axes and n in shapes]
    full = [n for n in inputs if len(shapes[n]) == len(shape)]
    # A gate or bias of another size says nothing about the axes.
    full = [n for n in full if shapes[n] == shape] or full
    merged = _agree([axes[n] for n in full], len(shape))
    if merged is None:
        return _reduced(node, op, axes, shapes)
    known_op = _keeps_axes(node, shapes, full)
    if not known_op:
        return replace(merged, roles=merged.roles[:1].ljust(len(shape), "?"))
    return merged


def _keeps_axes(node: fx.Node, shapes: Shapes, inputs: Sequence[fx.Node]) -> bool:
    """Whether an unknown operation keeps the order of axes: it changes at most two sizes, and not that of the batch."""
    before, after = shapes[inputs[0]], shapes[node]
    if not after:
        return True
    return sum(a != b for a, b in zip(before, after, strict=True)) <= 2 and before[0] == after[0]


def _reduced(node: fx.Node, op: Op, axes: Mapping[fx.Node, Axes], shapes: Shapes) -> Axes:
    """Drop the axes over which a mean or sum reduces. The roles are all "?" if these are not known."""
    shape, source = shapes[node], data_input(node)
    node_axes = axes.get(source) if source is not None else None
    dims = argument(node, 2 if op.kind == "norm" else 1, "dim")
    listed = list(dims) if isinstance(dims, (list, tuple)) else [dims]
    if node_axes is None or not node_axes.roles or not all(isinstance(dim, int) for dim in listed):
        return Axes("?" * len(shape))
    gone = {dim % len(node_axes.roles) for dim in listed}
    roles = "".join(role for i, role in enumerate(node_axes.roles) if i not in gone)
    return Axes(roles if len(roles) == len(shape) else "?" * len(shape))


def _agree(candidates: Sequence[Axes], rank: int) -> Axes | None:
    """Return the axes with the most known roles, or None if none has this rank.

    If other axes with as many known roles disagree about an axis, its role is "?".
    """
    usable = [node_axes for node_axes in candidates if len(node_axes.roles) == rank]
    if not usable:
        return None
    best = max(usable, key=lambda node_axes: node_axes.known)
    roles = "".join(
        "?" if any(o.known == best.known and o.roles[i] not in (role, "?") for o in usable) else role
        for i, role in enumerate(best.roles)
    )
    return replace(best, roles=roles)


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
    if len(shape) == 4 and axis in (1, 3):
        kind, sizes = ("nchw", shape[2:]) if axis == 1 else ("nhwc", shape[1:3])
        return [(Layout(axis, kind), channels, sizes[0], sizes[1])]
    if len(shape) != 3:
        return []
    tokens = shape[3 - axis]
    if node_axes.grid is None or tokens != node_axes.prefix + prod(node_axes.grid):
        return [(Layout(axis, "tokens"), channels, 1, tokens)]
    whole = [(Layout(axis, "tokens", node_axes.prefix), channels, *node_axes.grid)]
    if node_axes.prefix:
        whole.append((Layout(axis, "tokens", node_axes.prefix, only_prefix=True), channels, 1, 1))
    return whole
