"""Prove by interval arithmetic whether a layer can be negative, and what its upper bound is."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import fx

from pipeline.graph.ops import (
    ACTIVATIONS,
    IDENTITIES,
    MATMULS,
    NORMS,
    PERMUTES,
    RESHAPES,
    Op,
    argument,
    changed_in_place,
    fused_activation,
    module_kind,
)

Interval = tuple[float, float]
UNKNOWN: Interval = (-math.inf, math.inf)

_FIXED: dict[str, Interval] = {
    "relu6": (0.0, 6.0),
    "sigmoid": (0.0, 1.0),
    "hardsigmoid": (0.0, 1.0),
    "softmax": (0.0, 1.0),
    "tanh": (-1.0, 1.0),
    "softsign": (-1.0, 1.0),
    "softplus": (0.0, math.inf),
    "exp": (0.0, math.inf),
    "square": (0.0, math.inf),
    "abs": (0.0, math.inf),
    "logsigmoid": (-math.inf, 0.0),
}
_KEEP = (  # these pass values on, as they are
    IDENTITIES
    | RESHAPES
    | PERMUTES
    | frozenset({"maxpool", "adaptivemaxpool", "getitem", "chunk", "split", "unbind", "roll", "expand"})
)
# The result of these is never a view of an input. Of anything else it may be.
_FRESH = (
    (ACTIVATIONS | NORMS | MATMULS)
    | frozenset(
        {"conv", "convtranspose", "linear", "add", "sub", "mul", "div", "cat", "stack", "mean", "sum", "softmax"}
    )
    | frozenset({"maxpool", "avgpool", "adaptivemaxpool", "adaptiveavgpool", "exp", "sqrt", "pow", "abs", "maximum"})
)
# Averages of values >= 0 are >= 0, but rounding can lift them above an upper bound.
_AVERAGE = frozenset({"avgpool", "adaptiveavgpool", "mean"})


def intervals(module: fx.GraphModule, ops: Mapping[fx.Node, Op]) -> dict[fx.Node, Interval]:
    """Return (low, high) of each node, which hold for every value and every input; infinite if nothing is proved.

    They hold when the node has run. If a later node changes it in place, what follows goes by the changed values.
    """
    found: dict[fx.Node, Interval] = {}
    now: dict[fx.Node, Interval] = {}  # what holds at this point of the graph
    shared: dict[fx.Node, set[fx.Node]] = {}  # the nodes whose memory a node's value may be
    for node in module.graph.nodes:
        shared[node] = {node}
        if node.op not in ("call_module", "call_function", "call_method"):
            continue
        found[node] = now[node] = _step(node, ops[node], now)
        changed = [source for source in node.all_input_nodes if source.name in changed_in_place(node)]
        if changed or ops[node].kind not in _FRESH:
            shared[node] = shared[node].union(*(shared[source] for source in node.all_input_nodes))
        if changed:
            written = set().union(*(shared[source] for source in changed))
            for other in (other for other in now if other is not node and shared[other] & written):
                low, high = now[other]
                now[other] = min(low, found[node][0]), max(high, found[node][1])
    return found


def _step(node: fx.Node, op: Op, known: Mapping[fx.Node, Interval]) -> Interval:
    inputs = [known.get(source, UNKNOWN) for source in node.all_input_nodes]
    kind, owner = op.kind, op.module
    if op.norm and op.activation:  # the norm inside can return any value
        inputs, owner = [UNKNOWN], fused_activation(op.module) if op.module is not None else None
        kind = module_kind(owner) if owner is not None else "norm"
    first = inputs[0] if inputs else UNKNOWN
    if kind == "softplus" and not getattr(owner, "beta", argument(node, 1, "beta", 1)) > 0:
        return UNKNOWN
    if kind == "relu6" and owner is not None:
        return _clamped(node, "hardtanh", owner, first)
    if kind in ("to", "type") and not _is_float(node):
        return UNKNOWN
    if kind in _FIXED:
        return _FIXED[kind]
    if kind == "relu":
        return max(first[0], 0.0), max(first[1], 0.0)
    if kind in ("hardtanh", "clamp", "clip", "clampmin", "clampmax"):
        return _clamped(node, kind, owner, first)
    if kind in _KEEP:
        return first
    if kind in _AVERAGE:
        divisor = getattr(
            owner, "divisor_override", argument(node, 6, "divisor_override") if kind == "avgpool" else None
        )
        if isinstance(divisor, fx.Node) or (divisor or 1) < 0:
            return UNKNOWN
        return (0.0 if first[0] >= 0 else -math.inf), math.inf
    if kind == "interpolate":
        mode = getattr(owner, "mode", argument(node, 3, "mode", "nearest"))
        return first if mode == "nearest" else ((0.0, math.inf) if first[0] >= 0 and mode != "bicubic" else UNKNOWN)
    if kind == "zeropad" or (kind == "pad" and len(node.args) == 2 and not node.kwargs):
        return min(first[0], 0.0), max(first[1], 0.0)
    if kind == "cat":
        return min(low for low, _ in inputs), max(high for _, high in inputs)
    combine = _COMBINE.get(kind)
    operands = _operands(node, known)
    return combine(operands) if combine and len(operands) == 2 and not node.kwargs else UNKNOWN


def _is_float(cast: fx.Node) -> bool:
    """Whether `to` or `type` names no number type that wraps or rounds: integers lose the sign of large values."""
    given = (*cast.args[1:], *cast.kwargs.values())
    return all(x.is_floating_point for x in given if isinstance(x, torch.dtype)) and not any(
        isinstance(x, (fx.Node, str)) for x in given
    )


def _operands(node: fx.Node, known: Mapping[fx.Node, Interval]) -> list[Interval]:
    return [
        (float(arg), float(arg)) if isinstance(arg, (int, float)) else known.get(arg, UNKNOWN)
        for arg in node.args
        if isinstance(arg, (fx.Node, int, float))
    ]


def clamp_limits(node: fx.Node, kind: str, owner: Any) -> tuple[Any, Any]:
    """Return the limits (low, high) of a hardtanh or clamp, a module or a function; None is a missing limit."""
    if owner is not None:
        return owner.min_val, owner.max_val
    names = ("min_val", "max_val") if kind == "hardtanh" else ("min", "max")
    default = (-1.0, 1.0) if kind == "hardtanh" else (None, None)
    if kind == "clampmin":
        return argument(node, 1, "min"), None
    if kind == "clampmax":
        return None, argument(node, 1, "max")
    return argument(node, 1, names[0], default[0]), argument(node, 2, names[1], default[1])


def clip_limits(node: fx.Node, op: Op, owner: Any) -> tuple[Any, Any] | None:
    """Return the limits (low, high) of an activation that clips (ReLU, ReLU6, hardtanh, clamp), None for other nodes.

    A missing limit is None. `owner` is the activation's module, or None if it is a function.
    """
    if op.kind in ("relu", "relu6"):
        return 0.0, 6.0 if op.kind == "relu6" else None
    return clamp_limits(node, op.kind, owner) if op.kind in ("hardtanh", "clamp", "clip") else None


def _clamped(node: fx.Node, kind: str, owner: Any, first: Interval) -> Interval:
    low, high = clamp_limits(node, kind, owner)
    if isinstance(low, fx.Node) or isinstance(high, fx.Node):
        return UNKNOWN
    low = -math.inf if low is None else float(low)
    high = math.inf if high is None else float(high)
    return min(max(first[0], low), high), min(max(first[1], low), high)


def _sum(pair: Sequence[Interval]) -> Interval:
    return pair[0][0] + pair[1][0], pair[0][1] + pair[1][1]


def _product(pair: Sequence[Interval]) -> Interval:
    (low_a, high_a), (low_b, high_b) = pair
    if low_a < 0 or low_b < 0:
        return UNKNOWN
    return low_a * low_b, math.inf if math.inf in (high_a, high_b) else high_a * high_b


def _larger(pair: Sequence[Interval]) -> Interval:
    return max(pair[0][0], pair[1][0]), max(pair[0][1], pair[1][1])


def _smaller(pair: Sequence[Interval]) -> Interval:
    return min(pair[0][0], pair[1][0]), min(pair[0][1], pair[1][1])


_COMBINE: dict[str, Callable[[Sequence[Interval]], Interval]] = {
    "add": _sum,
    "mul": _product,
    "maximum": _larger,
    "minimum": _smaller,
}
