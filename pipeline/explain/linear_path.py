"""The way from some layers to another as a linear map, for what feeds a unit and how strongly.

In general terms (`EXPAND`), as Lucid defines expanded weights: activations pass their input on, max pooling takes
the average, gates multiply by one, norms do not divide by the spread. On one picture (`RECORD`, then `REPLAY`) each of
these is the factor that it was on this picture, so that contributions add up to what the network computed: an
activation multiplies each value by act(x) / x, max pooling takes the positions that it took, attention mixes values as
it did.

Source of expanded weights: Voss et al., Visualizing Weights, Distill 2021.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from pipeline.graph.nested import with_tensors
from pipeline.graph.ops import IDENTITIES, PERMUTES, RESHAPES, Op, argument, op_of
from pipeline.graph.splitting import item
from pipeline.graph.surgery import attach, replace_node, with_child

# Steps that move values about.
_ROUTING = IDENTITIES | RESHAPES | PERMUTES | {
    "getitem", "chunk", "split", "tensorsplit", "unbind", "narrow", "select", "roll", "flip", "expand", "repeat",
    "stack", "pixelshuffle", "pixelunshuffle", "channelshuffle", "setitem", "item", "pad", "zeropad",
}  # fmt: skip
# Steps that are linear by themselves, and what they are called.
_LINEAR = {
    "conv": "conv", "convtranspose": "transposed conv", "linear": "linear", "batchnorm": "norm",
    "avgpool": "average pool", "adaptiveavgpool": "average pool", "mean": "mean", "sum": "sum", "add": "add",
    "sub": "subtract", "neg": "negate", "cat": "concat", "interpolate": "resize",
}  # fmt: skip
_WEIGHTED = frozenset({"conv", "convtranspose", "linear"})
_NOT_ELEMENTWISE = frozenset({"glu"})
_MAX_POOLS = frozenset({"maxpool", "adaptivemaxpool"})
_POOL_SETTINGS = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
MOST_WAYS = 4  # that are named


class Mode(Enum):
    EXPAND = 0
    RECORD = 1
    REPLAY = 2


class Modes:
    """The mode that all steps of a path are in."""

    def __init__(self) -> None:
        self.mode = Mode.EXPAND


class _Step(nn.Module):
    """One step that is not linear by itself. `kept` is what it keeps of one picture."""

    def __init__(self, modes: Modes) -> None:
        super().__init__()
        self.modes = modes
        self.kept: Any = None


class _Activation(_Step):
    def __init__(self, modes: Modes, call: Callable[..., Tensor]) -> None:
        super().__init__(modes)
        self.call = call

    def forward(self, x: Tensor, *rest: Any, **more: Any) -> Tensor:
        if self.modes.mode is Mode.EXPAND:
            return x
        if self.modes.mode is Mode.RECORD:
            with torch.no_grad():
                at_zero = self.call(torch.zeros_like(x), *rest, **more)
                rise = self.call(x.clone(), *rest, **more) - at_zero
                self.kept = at_zero, torch.where(x == 0, 0, rise / torch.where(x == 0, 1, x))
        at_zero, factor = self.kept
        return at_zero + x * factor


class _MaxPool(_Step):
    """Max pooling of maps [..., H, W]. `settings`: those of torch's max_pool2d, or the `output_size`."""

    def __init__(self, modes: Modes, settings: dict[str, Any]) -> None:
        super().__init__(modes)
        self.settings = settings

    def forward(self, x: Tensor) -> Tensor:
        adaptive = "output_size" in self.settings
        if self.modes.mode is Mode.EXPAND:
            return F.adaptive_avg_pool2d(x, **self.settings) if adaptive else self._average(x)
        if self.modes.mode is Mode.RECORD:
            pool = F.adaptive_max_pool2d if adaptive else F.max_pool2d
            self.kept = pool(x, **self.settings, return_indices=True)[1]
        return x.flatten(-2).gather(-1, self.kept.flatten(-2)).unflatten(-1, self.kept.shape[-2:])

    def _average(self, x: Tensor) -> Tensor:
        """Average the positions that max pooling looks at. Positions outside the map do not count."""
        settings = dict(self.settings)
        dilation = settings.pop("dilation", 1)
        if dilation in (1, (1, 1), [1, 1]):
            return F.avg_pool2d(x, **settings, count_include_pad=False)
        size = settings["kernel_size"]
        rows, columns = (size, size) if isinstance(size, int) else size
        weight = torch.full((x.shape[-3], 1, rows, columns), 1 / (rows * columns), dtype=x.dtype, device=x.device)
        stride = settings.get("stride") or size
        return F.conv2d(x, weight, None, stride, settings.get("padding", 0), dilation, x.shape[-3])


class _Norm(_Step):
    """A layer, group or RMS norm without its division by the spread, or with the spread that a picture had."""

    def __init__(self, modes: Modes, norm: nn.Module) -> None:
        super().__init__(modes)
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        norm = self.norm
        if isinstance(norm, nn.GroupNorm):
            grouped = x.unflatten(1, (norm.num_groups, -1)).flatten(2)
            parts = self._normalized(grouped, (2,), norm.eps).reshape(x.shape)
            return self._scaled(parts, 1)
        assert isinstance(norm, (nn.LayerNorm, nn.RMSNorm))
        axis = 1 if is_norm_of_maps(norm) else None
        axes = (1,) if axis else tuple(range(-len(norm.normalized_shape), 0))
        eps = norm.eps if norm.eps is not None else torch.finfo(x.dtype).eps
        return self._scaled(self._normalized(x, axes, eps), axis)

    def _normalized(self, x: Tensor, axes: tuple[int, ...], eps: float) -> Tensor:
        centred = x if isinstance(self.norm, nn.RMSNorm) else x - x.mean(axes, keepdim=True)
        if self.modes.mode is Mode.EXPAND:
            return centred
        if self.modes.mode is Mode.RECORD:
            self.kept = (centred.detach().square().mean(axes, keepdim=True) + eps).rsqrt()
        return centred * self.kept

    def _scaled(self, x: Tensor, axis: int | None) -> Tensor:
        for name, apply in (("weight", torch.mul), ("bias", torch.add)):
            of = getattr(self.norm, name, None)
            if of is not None:
                x = apply(x, of if axis is None else of.reshape(-1, *(1 for _ in x.shape[2:])))
        return x


class _Factor(_Step):
    """A gate or a divisor: one in general, and what it was on a picture."""

    def forward(self, value: Tensor) -> Tensor:
        if self.modes.mode is Mode.EXPAND:
            return torch.ones_like(value)
        if self.modes.mode is Mode.RECORD:
            self.kept = value.detach()
        return self.kept


class _Constant(_Step):
    """A value that is not followed: it stays as it was on the picture."""

    def forward(self, value: Any) -> Any:
        if self.modes.mode is not Mode.REPLAY:
            self.kept = with_tensors(value, torch.Tensor.detach)
        return self.kept


def is_norm_of_maps(norm: nn.Module) -> bool:
    """Whether a LayerNorm of torchvision or timm takes maps [N, C, H, W]."""
    return type(norm).__name__.endswith("2d")


@dataclass(frozen=True)
class Steps:
    """A network's part as a linear map: its module, the mode of its steps, and how each source gets to the end.

    `ways`: for each source in turn, what leads from it to the end, in words; empty if nothing linear does.
    """

    module: fx.GraphModule
    modes: Modes
    ways: tuple[str, ...]


def linear_steps(part: fx.GraphModule, sources: int, sizes: Mapping[str, int]) -> Steps:
    """Turn the second part of a split network into a linear map of the values at which it was cut.

    The first `sources` values in its list are followed. The end keeps no activation of its own: the map leads to
    the value before it. `sizes`: the number of values of nodes (`Graph.sizes`).
    """
    return _Builder(part, sources, sizes).build()


class _Builder:
    def __init__(self, part: fx.GraphModule, sources: int, sizes: Mapping[str, int]) -> None:
        self.part, self.sources, self.sizes, self.modes = part, sources, sizes, Modes()
        output = next(iter(reversed(part.graph.nodes)))
        self.end = output.args[0]
        # For each node that is followed: by source, the ways that lead to it, each as words.
        self.ways: dict[fx.Node, dict[int, list[tuple[str, ...]]]] = {}

    def build(self) -> Steps:
        end = self.end
        for node in list(self.part.graph.nodes):
            if node.target is item and isinstance(node.args[1], int):
                if node.args[1] < self.sources:
                    self.ways[node] = {node.args[1]: [()]}
            elif node.op != "output" and any(source in self.ways for source in node.all_input_nodes):
                made = self._step(node, op_of(node, self.part))
                end = made if node is self.end else end
        self.part.delete_all_unused_submodules()
        self.part.recompile()
        found = self.ways.get(end, {})
        return Steps(self.part, self.modes, tuple(_described(found.get(s, [])) for s in range(self.sources)))

    def _step(self, node: fx.Node, op: Op) -> fx.Node:
        """Make one node linear, and return the node that now has its value."""
        first = node.all_input_nodes[0]
        alone = all(source is first or source not in self.ways for source in node.all_input_nodes)
        if op.activation and not op.norm and op.kind not in _NOT_ELEMENTWISE and alone and first in self.ways:
            return self._activation(node, op, first)
        if op.norm and op.activation and alone and op.module is not None:
            return self._norm_with_activation(node, op)
        if op.kind in _MAX_POOLS and alone and (settings := _pool_settings(node, op)) is not None:
            return self._replaced(node, _MaxPool(self.modes, settings), (first,), "max pool")
        if op.kind in ("layernorm", "rmsnorm", "groupnorm") and op.module is not None and _is_known_norm(op.module):
            return self._replaced(node, _Norm(self.modes, op.module), (first,), "norm")
        if op.kind in ("mul", "div"):
            return self._product(node, op)
        if op.kind in ("matmul", "bmm", "scaleddotproductattention"):
            return self._mixture(node, op)
        weights = [s for s in node.all_input_nodes if s is not first] if op.kind in _WEIGHTED else []
        is_norm = op.kind == "batchnorm" and getattr(op.module, "running_mean", None) is not None
        if op.kind in _ROUTING or (
            op.kind in _LINEAR and (op.kind != "batchnorm" or is_norm) and not any(w in self.ways for w in weights)
        ):
            return self._followed(node, _word(node, op))
        return self._cut(node)

    def _followed(self, node: fx.Node, word: str) -> fx.Node:
        """Note the ways that lead to a node, each longer by a word, and return the node."""
        ways: dict[int, list[tuple[str, ...]]] = {}
        for source in node.all_input_nodes:
            for start, found in self.ways.get(source, {}).items():
                longer = [(*way, word) if word else way for way in found]
                ways[start] = [*ways.get(start, []), *(way for way in longer if way not in ways.get(start, []))]
        self.ways[node] = ways
        return node

    def _replaced(self, node: fx.Node, step: nn.Module, arguments: tuple[Any, ...], word: str, **more: Any) -> fx.Node:
        name = attach(self.part, f"linear_{node.name}", step)
        with self.part.graph.inserting_before(node):
            new = self.part.graph.call_module(name, arguments, more)
        replace_node(node, new)
        return self._followed(new, word)

    def _activation(self, node: fx.Node, op: Op, x: fx.Node) -> fx.Node:
        if node is self.end:
            return self._replaced(node, nn.Identity(), (x,), "")
        others = tuple(node.args[1:]) if node.args and node.args[0] is x else ()
        return self._replaced(node, _Activation(self.modes, _callable(node, op)), (x, *others), op.kind, **node.kwargs)

    def _norm_with_activation(self, node: fx.Node, op: Op) -> fx.Node:
        """Take a norm and the activation inside it apart."""
        assert op.module is not None
        act = op.module.act
        bare = with_child(op.module, "act", nn.Identity())
        assert isinstance(act, nn.Module)
        name = attach(self.part, f"norm_{node.name}", bare)
        with self.part.graph.inserting_before(node):
            norm = self.part.graph.call_module(name, node.args, node.kwargs)
        norm = self._step(norm, op_of(norm, self.part))
        if norm not in self.ways:
            return self._cut(node)
        step = nn.Identity() if node is self.end else _Activation(self.modes, act)
        return self._replaced(node, step, (norm,), "" if node is self.end else op.kind)

    def _product(self, node: fx.Node, op: Op) -> fx.Node:
        """Follow one factor; the other is a gate, unless it is constant. The gate is the second, or the smaller one."""
        followed = [source for source in node.all_input_nodes if source in self.ways]
        if op.kind == "div":
            gates = [source for source in followed if source is argument(node, 1, "other")]
            if len(gates) == len(followed):
                return self._cut(node)
        else:
            # The smaller factor is the gate, or else the second.
            gates = sorted(followed, key=lambda source: -self.sizes.get(source.name, 0))[1:]
        for gate in gates:
            node.replace_input_with(gate, self._beside(gate, _Factor(self.modes)))
        return self._followed(node, "gate" if gates else "")

    def _mixture(self, node: fx.Node, op: Op) -> fx.Node:
        """Follow the values that attention mixes, or one factor of a product of matrices. The rest is constant."""
        inputs = list(node.all_input_nodes)
        values = inputs[2] if op.kind == "scaleddotproductattention" and len(inputs) > 2 else None
        followed = [source for source in inputs if source in self.ways]
        kept = values if values is not None else followed[-1]
        if kept not in self.ways:
            return self._cut(node)
        for other in followed:
            if other is not kept:
                node.replace_input_with(other, self._beside(other, _Constant(self.modes)))
        return self._followed(node, "attention" if values is not None else "matmul")

    def _beside(self, node: fx.Node, step: nn.Module) -> fx.Node:
        """Insert a step after a node for one of its users."""
        name = attach(self.part, f"kept_{node.name}", step)
        with self.part.graph.inserting_after(node):
            return self.part.graph.call_module(name, (node,))

    def _cut(self, node: fx.Node) -> fx.Node:
        name = attach(self.part, f"constant_{node.name}", _Constant(self.modes))
        with self.part.graph.inserting_after(node):
            kept = self.part.graph.call_module(name, (node,))
        node.replace_all_uses_with(kept, delete_user_cb=lambda user: user is not kept)
        return kept


def _is_known_norm(norm: nn.Module) -> bool:
    return isinstance(norm, (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm)) and type(norm).__module__.startswith(
        ("torch.", "torchvision.", "timm.")
    )


def _callable(node: fx.Node, op: Op) -> Callable[..., Tensor]:
    if op.module is not None:
        return op.module
    if node.op == "call_method":
        return lambda x, *rest, **more: getattr(x, str(node.target))(*rest, **more)
    assert callable(node.target)
    return node.target


def _pool_settings(node: fx.Node, op: Op) -> dict[str, Any] | None:
    """Return the settings of a max pool, or None if it also returns where the maxima are."""
    if op.module is not None:
        if getattr(op.module, "return_indices", False):
            return None
        if op.kind == "adaptivemaxpool":
            return {"output_size": op.module.output_size}
        return {name: getattr(op.module, name) for name in _POOL_SETTINGS}
    if argument(node, 6, "return_indices"):
        return None
    names = ("output_size",) if op.kind == "adaptivemaxpool" else _POOL_SETTINGS
    found = {name: argument(node, place + 1, name) for place, name in enumerate(names)}
    return {name: value for name, value in found.items() if value is not None}


def _word(node: fx.Node, op: Op) -> str:
    """Return what a linear step is called: "3x3 conv", "5x5 depthwise conv", "linear", "add"."""
    word = _LINEAR.get(op.kind, "")
    size = getattr(op.module, "kernel_size", None)
    if op.kind in ("conv", "convtranspose") and isinstance(size, tuple):
        groups, width = getattr(op.module, "groups", 1), getattr(op.module, "in_channels", 0)
        kind = "" if groups == 1 else "depthwise " if groups == width else "grouped "
        return f"{'x'.join(str(s) for s in size)} {kind}{word}"
    return word


def _described(ways: Sequence[tuple[str, ...]]) -> str:
    if not ways:
        return ""
    shown = [" > ".join(way) or "itself" for way in ways[:MOST_WAYS]]
    return " + ".join(shown) + (f" + {len(ways) - MOST_WAYS} more" if len(ways) > MOST_WAYS else "")
