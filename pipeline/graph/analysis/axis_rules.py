"""What each operation does to the axes of its inputs."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import fx

from pipeline.graph.analysis.axis import (
    PLACES,
    UNKNOWN,
    Axes,
    Axis,
    batch_only,
    regrouped,
    rolled,
    unknown,
    whole,
)
from pipeline.graph.analysis.shapes import Shapes
from pipeline.graph.ops import CUSTOM, MATMULS, NORMS, PERMUTES, RESHAPES, Op, argument, data_input

Sizes = Mapping[fx.Node, tuple[int, ...]]

# These move or make axes in ways that are not followed; weights after them show the channels again.
_MOVING = frozenset({"tensordot", "rot90", "fliplr", "flipud", "getattr", "unfold", "fold", "asstrided"})
# These move the values along one axis, their argument `dim`.
_REORDERING = frozenset(
    {"flip", "gather", "indexselect", "takealongdim", "sort", "topk", "msort", "scatter", "cumsum", "repeat", "tile"}
)
_PICKING = frozenset({"max", "min", "median", "mode", "kthvalue"})  # with `dim`, these return (values, indices)


def after(node: fx.Node, op: Op, axes: Mapping[fx.Node, Axes], found: Shapes) -> Axes | None:
    """Return the axes of a node's output, before its sizes are looked at; None if no picture reaches it."""
    source, shapes = data_input(node), found.of
    if source is None or not any(n in axes for n in node.all_input_nodes):
        return None
    if node not in shapes:  # a tuple of tensors
        return _tuple_axes(node, op, axes)
    shape = shapes[node]
    channels = weight_axis(op, len(shape))
    if channels is not None and source in axes:
        return _weighted(axes[source], op, channels, shapes.get(source, ()), shape)
    if op.kind.startswith(CUSTOM) and source in axes:
        return _hidden(axes[source], shapes.get(source, ()), shape)
    if op.kind in RESHAPES and source in shapes and source in axes:
        return Axes(tuple(regrouped(axes[source].axes, shapes[source], shape)))
    if op.kind in PERMUTES and source in axes:
        return _permuted(node, op, axes[source], len(shape))
    if op.kind in MATMULS and source in axes:
        return _multiplied(node, axes, len(shape))
    if op.kind == "getattr" and source in axes and source not in shapes:
        return axes[source]  # a field of a tuple
    if op.kind in _MOVING:
        return unknown(len(shape))
    if op.kind == "getitem" and source in axes:
        return _indexed(node, axes[source], shapes.get(source), found.numbers)
    if op.kind == "einsum":
        return _summed(node, axes, len(shape))
    if op.kind == "cat":
        return _concatenated(node, axes, shapes)
    if op.kind in ("pixelshuffle", "pixelunshuffle") and source in axes and axes[source].roles == "nchw":
        return Axes((axes[source].axes[0], *(whole(*pair) for pair in zip("chw", shape[1:], strict=True))))
    inherited = _inherited(node, op, axes, shapes)
    if op.kind == "roll" or op.kind in _REORDERING:
        return _moved(node, op, inherited, shapes.get(source, ()), found)
    return inherited


def _tuple_axes(node: fx.Node, op: Op, axes: Mapping[fx.Node, Axes]) -> Axes | None:
    source = data_input(node)
    if source is None or source not in axes or op.kind in ("size", "getattr", "dim", "assert", "eq"):
        return None
    node_axes = axes[source]
    dim = argument(node, 1, "dim", 0)
    if op.kind == "unbind" or (op.kind in _PICKING and isinstance(dim, int) and not argument(node, 2, "keepdim")):
        at = int(dim) % len(node_axes.axes)
        return Axes(node_axes.axes[:at] + node_axes.axes[at + 1 :])
    if op.kind == "multiheadattention":
        return node_axes.put(-1, whole("c", 1))
    if op.kind in ("chunk", "split", "tensorsplit"):
        along = argument(node, 2, "dim", 0)
        cut_at = along % len(node_axes.axes) if isinstance(along, int) else None
        cut = [UNKNOWN if i == cut_at and axis.letters != "c" else axis for i, axis in enumerate(node_axes.axes)]
        return Axes(tuple(cut))
    return batch_only(node_axes, len(node_axes.axes))


def _hidden(node_axes: Axes, before: Sequence[int], shape: Sequence[int]) -> Axes:
    """Return what is believed of a module that only its user knows: positions stay if no size changes."""
    if tuple(before) == tuple(shape):
        return Axes(tuple(axis if axis.letters != "c" else UNKNOWN for axis in node_axes.axes))
    return batch_only(node_axes, len(shape)) if shape[:1] == tuple(before[:1]) else unknown(len(shape))


def _weighted(node_axes: Axes, op: Op, axis: int, before: Sequence[int], shape: Sequence[int]) -> Axes:
    if len(node_axes.axes) != len(shape) or len(before) != len(shape):
        node_axes = batch_only(node_axes, len(shape))
    elif op.kind in ("conv", "convtranspose"):
        kept = [
            a if role in PLACES or size == other else UNKNOWN
            for a, role, size, other in zip(node_axes.axes, node_axes.roles, before, shape, strict=True)
        ]
        node_axes = Axes(tuple(kept))
    elif op.kind == "linear" and "c" in node_axes.roles[:-1]:
        return node_axes.put(-1, UNKNOWN)  # mixes tokens (MLP-Mixer): the channels stay where they are
    return node_axes.put(axis, whole("c", shape[axis]))


def weight_axis(op: Op, rank: int) -> int | None:
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


def _permuted(node: fx.Node, op: Op, node_axes: Axes, rank: int) -> Axes:
    if op.module is not None:
        order = list(getattr(op.module, "dims", range(rank)))
    elif op.kind == "permute":
        given: Any = node.args[1:] or node.kwargs["dims"]
        order = list(given[0] if isinstance(given[0], (list, tuple)) else given)
    elif op.kind in ("movedim", "moveaxis"):
        moved = [[dim % rank for dim in _listed(given)] for given in node.args[1:3]]
        order = [dim for dim in range(rank) if dim not in moved[0]]
        for to, dim in sorted(zip(moved[1], moved[0], strict=True)):
            order.insert(to, dim)
    else:
        order = list(range(rank))
        default = (0, 1) if op.kind == "t" else (argument(node, 1, "dim0"), argument(node, 2, "dim1"))
        first, second = (int(dim) for dim in default)
        order[first], order[second] = order[second], order[first]
    return Axes(tuple(node_axes.axes[int(dim)] for dim in order))


def _multiplied(node: fx.Node, axes: Mapping[fx.Node, Axes], rank: int) -> Axes:
    """Return the axes of a product of matrices: the rows are those of the first factor, the columns of the last."""
    factors = [axes[n] for n in node.all_input_nodes if n in axes and len(axes[n].axes) == rank]
    if not factors:
        return unknown(rank)
    last = factors[-1].axes[-1]
    return factors[0].put(-1, last if len(factors) == 2 and last.of_places else UNKNOWN)


def _summed(node: fx.Node, axes: Mapping[fx.Node, Axes], rank: int) -> Axes:
    """Return the axes of an Einstein sum: each letter of the result is an axis of the first factor that has it."""
    equation = node.args[0]
    if not isinstance(equation, str) or "->" not in equation or "." in equation:
        return unknown(rank)
    inputs, result = equation.replace(" ", "").split("->")
    letters: dict[str, Axis] = {}
    for names, factor in zip(inputs.split(","), node.all_input_nodes, strict=False):
        for name, axis in zip(names, axes[factor].axes if factor in axes else (), strict=False):
            letters.setdefault(name, axis)
    return Axes(tuple(letters.get(name, UNKNOWN) for name in result))


def _moved(node: fx.Node, op: Op, node_axes: Axes, before: Sequence[int], found: Shapes) -> Axes:
    """Return the axes after an operation that moves values along an axis, which is then unknown unless rolled."""
    shape = found.of[node]
    if op.kind in ("repeat", "tile"):
        if len(before) != len(shape):
            return batch_only(node_axes, len(shape))
        copied = [b not in (1, a) for a, b in zip(shape, before, strict=True)]
        return Axes(tuple(UNKNOWN if many else axis for many, axis in zip(copied, node_axes.axes, strict=True)))
    shifts: list[Any] = []
    if op.kind == "roll":
        shifts, dims = _listed(argument(node, 1, "shifts")), _listed(argument(node, 2, "dims"))
    elif op.kind == "flip":
        dims = [dim for given in (*node.args[1:], node.kwargs.get("dims")) for dim in _listed(given)]
    else:
        dims = _listed(argument(node, 1, "dim"))
    shifts, dims = ([found.numbers.get(number, number) for number in numbers] for numbers in (shifts, dims))
    if not dims or not all(isinstance(number, int) for number in [*shifts, *dims]):
        return batch_only(node_axes, len(shape))
    axes = list(node_axes.axes)
    for i, dim in enumerate(dims):
        axes[dim] = rolled(axes[dim], shifts[i]) if shifts else UNKNOWN
    return Axes(tuple(axes))


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [] if value is None else [value]


def _indexed(node: fx.Node, node_axes: Axes, shape: Sequence[int] | None, numbers: Mapping[fx.Node, int]) -> Axes:
    if shape is None:
        return node_axes  # the node is an item of a tuple
    index = node.args[1]
    parts = list(index) if isinstance(index, tuple) else [index]
    if Ellipsis in parts:
        at = parts.index(Ellipsis)
        used = sum(part is not None for part in parts) - 1
        parts[at : at + 1] = [slice(None)] * (len(node_axes.axes) - used)
    result, rest, sizes = [], list(node_axes.axes), list(shape)
    for part in parts:
        if part is None:
            result.append(UNKNOWN)
            continue
        axis, size = rest.pop(0), sizes.pop(0)
        if isinstance(part, slice):
            bounds = [numbers.get(v, v) for v in (part.start, part.stop, part.step)]
            result.append(_sliced(axis, slice(*bounds), size))
        elif not isinstance(part, int) and part not in numbers:
            return unknown(len(node_axes.axes))
    return Axes((*result, *rest))


def _sliced(axis: Axis, part: slice, size: int) -> Axis:
    """Return an axis after a slice. One that takes off tokens before the grid leaves the grid."""
    if not axis.prefix or not all(v is None or isinstance(v, int) for v in (part.start, part.stop, part.step)):
        return axis
    start, stop, step = part.indices(size)
    return replace(axis, prefix=axis.prefix - start) if stop == size and step == 1 and start <= axis.prefix else UNKNOWN


def _concatenated(node: fx.Node, axes: Mapping[fx.Node, Axes], shapes: Sizes) -> Axes | None:
    """Merge the axes of the inputs. Tokens before the grid (class, register, distillation) become its prefix."""
    inputs = [n for n in node.all_input_nodes if n in shapes]
    rank, dim = len(shapes[node]), argument(node, 1, "dim", 0)
    if not isinstance(dim, int):
        return agree([axes[n] for n in inputs if n in axes], rank)
    across = [axes[n].put(dim, UNKNOWN) for n in inputs if n in axes and len(axes[n].axes) == rank]
    merged = agree(across, rank)
    if merged is None:
        return None
    along = [axes.get(n, unknown(rank)).axes[dim] for n in inputs]
    if all(axis.letters == "c" for axis in along):
        return merged.put(dim, whole("c", shapes[node][dim]))
    grids = [i for i, axis in enumerate(along) if axis.of_places]
    if len(grids) == 1:
        before = sum(shapes[n][dim] for n in inputs[: grids[0]])
        return merged.put(dim, replace(along[grids[0]], prefix=before + along[grids[0]].prefix))
    return merged


def _inherited(node: fx.Node, op: Op, axes: Mapping[fx.Node, Axes], shapes: Sizes) -> Axes:
    shape = shapes[node]
    inputs = [n for n in node.all_input_nodes if n in axes and n in shapes]
    full = [n for n in inputs if len(shapes[n]) == len(shape)]
    # A gate or bias of another size says nothing about the axes.
    full = [n for n in full if shapes[n] == shape] or full
    merged = agree([axes[n] for n in full], len(shape))
    if merged is None:
        return _reduced(node, op, axes, shapes)
    if len(full) > 1 and all(shapes[n] != shape for n in full):
        return _broadcast([(axes[n], shapes[n]) for n in full], shape)
    if not _keeps_axes(node, shapes, full):
        return batch_only(merged, len(shape))
    return merged


def _broadcast(inputs: Sequence[tuple[Axes, Sequence[int]]], shape: Sequence[int]) -> Axes:
    """Return the axes of a result that is larger than each input: an axis is that of the inputs with its size."""
    result = []
    for at, size in enumerate(shape):
        candidates = {node_axes.axes[at] for node_axes, before in inputs if before[at] == size}
        result.append(candidates.pop() if len(candidates) == 1 else UNKNOWN)
    return Axes(tuple(result))


def _keeps_axes(node: fx.Node, shapes: Sizes, inputs: Sequence[fx.Node]) -> bool:
    """Whether an unknown operation keeps the order of axes: it changes at most two sizes, and not that of the batch."""
    before, shape = shapes[inputs[0]], shapes[node]
    if not shape:
        return True
    return sum(a != b for a, b in zip(before, shape, strict=True)) <= 2 and before[0] == shape[0]


def _reduced(node: fx.Node, op: Op, axes: Mapping[fx.Node, Axes], shapes: Sizes) -> Axes:
    """Remove the axes over which a mean or a sum reduces. If these are unknown, all axes of the result are unknown."""
    shape, source = shapes[node], data_input(node)
    node_axes = axes.get(source) if source is not None else None
    listed = _listed(argument(node, 2 if op.kind == "norm" else 1, "dim"))
    if node_axes is None or not node_axes.axes or not listed or not all(isinstance(dim, int) for dim in listed):
        return unknown(len(shape))
    gone = {dim % len(node_axes.axes) for dim in listed}
    left = tuple(axis for i, axis in enumerate(node_axes.axes) if i not in gone)
    return Axes(left) if len(left) == len(shape) else unknown(len(shape))


def agree(candidates: Sequence[Axes], rank: int) -> Axes | None:
    """Return the candidate with the most known axes, or None if no candidate has this rank.

    An axis is unknown if another candidate with as many known axes disagrees about it.
    """
    usable = [node_axes for node_axes in candidates if len(node_axes.axes) == rank]
    if not usable:
        return None
    best = max(usable, key=lambda node_axes: node_axes.known)
    rivals = [other for other in usable if other.known == best.known]
    return Axes(
        tuple(
            UNKNOWN if any(other.roles[i] != "?" and other.axes[i] != axis for other in rivals) else axis
            for i, axis in enumerate(best.axes)
        )
    )
