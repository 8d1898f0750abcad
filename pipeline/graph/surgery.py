"""Changes to a traced network that share its parameters: taps after nodes, truncation, removing a clip."""

import copy
from collections.abc import Callable, Collection, Sequence

import torch
from torch import Tensor, fx, nn

from pipeline.graph.analysis.bounds import clip_limits
from pipeline.graph.layer import Layer
from pipeline.graph.ops import fused_activation, op_of
from store.errors import UsageError

Tap = Callable[[Layer, Tensor], None]


class _Tapped(nn.Module):
    """Hands a node's output on as NCHW, for each layer that the node serves."""

    def __init__(self, layers: Sequence[Layer], tap: Tap):
        super().__init__()
        self.layers = tuple(layers)
        self.tap = tap

    def forward(self, x: Tensor) -> None:
        for layer in self.layers:
            self.tap(layer, layer.to_nchw(x))


class _AsNCHW(nn.Module):
    def __init__(self, layer: Layer, keep: bool):
        super().__init__()
        self.layer = layer
        self.keep = keep  # a copy, which statements in place after this one leave alone

    def forward(self, x: Tensor) -> Tensor:
        return self.layer.to_nchw(x.clone() if self.keep else x)


def copied(module: fx.GraphModule) -> fx.GraphModule:
    """The same graph and node names in a new GraphModule that shares every submodule and parameter."""
    graph = fx.Graph()
    graph.output(graph.graph_copy(module.graph, {}))
    fresh = fx.GraphModule(module, graph, type(module).__name__)
    for old, new in zip(module.graph.nodes, graph.nodes, strict=True):
        if old.name != new.name:
            new.name = old.name
    return fresh


def with_taps(module: fx.GraphModule, layers: Sequence[Layer], tap: Tap) -> fx.GraphModule:
    """A network that calls `tap(layer, output as [N, C, H, W])` right after each layer's node, before anything can
    overwrite it. It ends with the last of them, and returns the logits if they are among the layers, else None."""
    by_node: dict[str, list[Layer]] = {}
    for layer in layers:
        by_node.setdefault(layer.node, []).append(layer)
    found = _nodes_named(module, by_node)
    fresh = copied(module)
    nodes = {node.name: node for node in fresh.graph.nodes}
    output = next(iter(reversed(fresh.graph.nodes)))
    result = output.args[0]
    wanted = (
        isinstance(result, fx.Node)
        and result.name in by_node
        and any(layer.layout.kind == "vector" for layer in by_node[result.name])
    )
    output.args = (result if wanted else None,)
    taps: list[fx.Node] = []
    for node in found:
        name = attach(fresh, f"tap_{node.name}", _Tapped(by_node[node.name], tap))
        with fresh.graph.inserting_after(nodes[node.name]):
            taps.append(fresh.graph.call_module(name, (nodes[node.name],)))
    _remove_unneeded(fresh, taps)
    return fresh


def truncated(module: fx.GraphModule, layers: Layer | Sequence[Layer]) -> fx.GraphModule:
    """The network from its input to that layer's output as [N, C, H, W]; differentiable. Of several layers it gives a
    tuple in their order, which no later statement in place overwrites."""
    chosen = [layers] if isinstance(layers, Layer) else list(layers)
    _nodes_named(module, {layer.node for layer in chosen})
    fresh = copied(module)
    nodes = {node.name: node for node in fresh.graph.nodes}
    found: list[fx.Node] = []
    for place, layer in enumerate(chosen):
        node = nodes[layer.node]
        if layer.layout.kind != "nchw" or len(chosen) > 1:
            name = attach(fresh, f"nchw_{layer.node}_{place}", _AsNCHW(layer, len(chosen) > 1))
            with fresh.graph.inserting_after(node):
                node = fresh.graph.call_module(name, (node,))
        found.append(node)
    output = next(iter(reversed(fresh.graph.nodes)))
    output.args = (found[0] if isinstance(layers, Layer) else tuple(found),)
    _remove_unneeded(fresh, found)
    return fresh


def unclipped(module: fx.GraphModule, layer: Layer) -> fx.GraphModule:
    """The network with the upper limit of that layer's own ReLU6, hardtanh or clamp removed; itself if it has none."""
    _nodes_named(module, [layer.node])
    fresh = copied(module)
    node = next(node for node in fresh.graph.nodes if node.name == layer.node)
    op = op_of(node, fresh)
    act = fused_activation(op.module) if op.norm and op.module is not None else None
    owner = act if act is not None else op.module
    limits = clip_limits(node, op, owner)
    if limits is None or limits[1] is None:
        return module
    low = limits[0]
    free: nn.Module = nn.ReLU(inplace=bool(getattr(owner, "inplace", False))) if low == 0 else _AtLeast(low)
    if act is not None and op.module is not None:  # a norm with its activation inside
        free = with_child(op.module, "act", free)
    name = attach(fresh, f"unclipped_{node.name}", free)
    with fresh.graph.inserting_before(node):
        bare = fresh.graph.call_module(name, (node.all_input_nodes[0],))
    replace_node(node, bare)
    fresh.delete_all_unused_submodules()
    fresh.recompile()
    return fresh


class _AtLeast(nn.Module):
    def __init__(self, low: float | None):
        super().__init__()
        self.low = low

    def forward(self, x: Tensor) -> Tensor:
        return x if self.low is None else torch.clamp(x, min=self.low)


def attach(module: fx.GraphModule, name: str, submodule: nn.Module) -> str:
    """Add a submodule under that name, or the next free one, and return it."""
    while hasattr(module, name):
        name += "_"
    module.add_submodule(name, submodule)
    return name


def replace_node(old: fx.Node, new: fx.Node) -> None:
    """Put `new` in the place, and under the name, of `old`."""
    name = old.name
    old.replace_all_uses_with(new)
    old.graph.erase_node(old)
    new.name = name


def with_child(module: nn.Module, name: str, child: nn.Module) -> nn.Module:
    """A copy of a module with another child, which shares its parameters, its buffers and its other children."""
    shared = (*module.parameters(recurse=False), *module.buffers(recurse=False), *module.children())
    fresh = copy.deepcopy(module, {id(part): part for part in shared})
    setattr(fresh, name, child)
    return fresh


def _nodes_named(module: fx.GraphModule, names: Collection[str]) -> list[fx.Node]:
    found = [node for node in module.graph.nodes if node.name in names]
    missing = sorted(set(names) - {node.name for node in found})
    if missing:
        raise UsageError(
            f"{', '.join(missing)}: no node of this graph; a convolution that was folded into its norm must be named "
            "in fold_norms(keep=...) to stay"
        )
    return found


def _remove_unneeded(module: fx.GraphModule, wanted: Sequence[fx.Node]) -> None:
    """Remove what follows the last wanted node and what leads to none; taps and statements that write in place stay."""
    order = list(module.graph.nodes)
    last = max(order.index(node) for node in wanted) if wanted else -1
    keep = set(wanted)
    for index, node in reversed(list(enumerate(order))):
        if node.op in ("placeholder", "output") or node in keep or node.users:
            continue
        if index > last or not _has_effect(node, module):
            module.graph.erase_node(node)
    module.delete_all_unused_submodules()
    module.recompile()


def _has_effect(node: fx.Node, module: fx.GraphModule) -> bool:
    if node.op == "call_module":
        called = module.get_submodule(str(node.target))
        return isinstance(called, _Tapped) or bool(getattr(called, "inplace", False))
    name = str(getattr(node.target, "__name__", node.target))
    return name == "setitem" or (name.endswith("_") and not name.endswith("__")) or bool(node.kwargs.get("inplace"))
