"""Changes to a traced network that share its parameters: add taps after nodes, truncate it, remove a clip."""

import copy
from collections.abc import Callable, Collection, Sequence

import torch
from torch import Tensor, fx, nn

from pipeline.graph.analysis.bounds import clip_limits
from pipeline.graph.layer import Layer
from pipeline.graph.ops import changed_in_place, fused_activation, op_of
from store.errors import UsageError

Tap = Callable[[Layer, Tensor], None]


class _Tapped(nn.Module):
    """Call the tap with a node's output as [N, C, H, W], once for each layer of the node."""

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
        self.keep = keep  # return a copy, which later in-place operations do not change

    def forward(self, x: Tensor) -> Tensor:
        return self.layer.to_nchw(x.clone() if self.keep else x)


def copied(module: fx.GraphModule) -> fx.GraphModule:
    """Return a new GraphModule with the same graph and node names; it shares every submodule and parameter."""
    graph = fx.Graph()
    graph.output(graph.graph_copy(module.graph, {}))
    fresh = fx.GraphModule(module, graph, type(module).__name__)
    for old, new in zip(module.graph.nodes, graph.nodes, strict=True):
        if old.name != new.name:
            new.name = old.name
    return fresh


def in_memory_format(module: fx.GraphModule, memory_format: torch.memory_format) -> fx.GraphModule:
    """Bring the 4-d weights of a network to a memory format, in place. Only 4-d tensors have one.

    Maps in channels-last memory have no views that join channels and positions, so `view` becomes `reshape`.
    """
    if memory_format == torch.contiguous_format:
        return module
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.ndim == 4 and tensor.is_floating_point():
            tensor.data = tensor.data.contiguous(memory_format=memory_format)
    for node in module.graph.nodes:
        if node.op == "call_method" and node.target == "view" and not _is_cast(node):
            node.target = "reshape"
    module.recompile()
    return module


def _is_cast(view: fx.Node) -> bool:
    """Whether `view` reads the same bits as another type of number."""
    return any(isinstance(arg, torch.dtype) for arg in (*view.args, *view.kwargs.values()))


def with_taps(module: fx.GraphModule, layers: Sequence[Layer], tap: Tap) -> fx.GraphModule:
    """Return a network that calls `tap(layer, output as [N, C, H, W])` right after each layer's node.

    So no in-place operation has overwritten the output yet. The network ends with the last of these layers. It returns
    the logits if they are among the layers, else None. Raises UsageError if the graph has no such node.
    """
    by_node: dict[str, list[Layer]] = {}
    for layer in layers:
        by_node.setdefault(layer.node, []).append(layer)
    tapped = _nodes_named(module, by_node)
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
    for node in tapped:
        name = attach(fresh, f"tap_{node.name}", _Tapped(by_node[node.name], tap))
        with fresh.graph.inserting_after(nodes[node.name]):
            taps.append(fresh.graph.call_module(name, (nodes[node.name],)))
    remove_unneeded(fresh, taps)
    return fresh


def truncated(module: fx.GraphModule, layers: Layer | Sequence[Layer]) -> fx.GraphModule:
    """Return the network from its input to a layer's output as [N, C, H, W]; it is differentiable.

    For several layers, the network returns a tuple in their order, of copies that no later in-place operation changes.
    Raises UsageError if the graph has no such node.
    """
    chosen = [layers] if isinstance(layers, Layer) else list(layers)
    _nodes_named(module, {layer.node for layer in chosen})
    fresh = copied(module)
    nodes = {node.name: node for node in fresh.graph.nodes}
    outputs: list[fx.Node] = []
    for index, layer in enumerate(chosen):
        node = nodes[layer.node]
        if layer.layout.kind != "nchw" or len(chosen) > 1:
            name = attach(fresh, f"nchw_{layer.node}_{index}", _AsNCHW(layer, len(chosen) > 1))
            with fresh.graph.inserting_after(node):
                node = fresh.graph.call_module(name, (node,))
        outputs.append(node)
    output = next(iter(reversed(fresh.graph.nodes)))
    output.args = (outputs[0] if isinstance(layers, Layer) else tuple(outputs),)
    remove_unneeded(fresh, outputs)
    return fresh


def unclipped(module: fx.GraphModule, layer: Layer) -> fx.GraphModule:
    """Return the network without the upper limit of that layer's own clip, or the same module if it has no limit."""
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
    if act is not None and op.module is not None:  # the activation is inside a norm
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
    """Add a submodule under that name, or under the next free one, and return the name."""
    while hasattr(module, name):
        name += "_"
    module.add_submodule(name, submodule)
    return name


def replace_node(old: fx.Node, new: fx.Node) -> None:
    """Replace the node `old` by `new`, which takes its users and its name."""
    name = old.name
    old.replace_all_uses_with(new)
    old.graph.erase_node(old)
    new.name = name


def with_child(module: nn.Module, name: str, child: nn.Module) -> nn.Module:
    """Return a copy of a module with one child replaced. It shares the parameters, buffers and other children."""
    shared = (*module.parameters(recurse=False), *module.buffers(recurse=False), *module.children())
    fresh = copy.deepcopy(module, {id(part): part for part in shared})
    setattr(fresh, name, child)
    return fresh


def _nodes_named(module: fx.GraphModule, names: Collection[str]) -> list[fx.Node]:
    nodes = [node for node in module.graph.nodes if node.name in names]
    missing = sorted(set(names) - {node.name for node in nodes})
    if missing:
        raise UsageError(
            f"{', '.join(missing)}: no such node in this graph; fold_norms removes convolutions that a norm follows: "
            "name those to keep in fold_norms(keep=...)"
        )
    return nodes


def remove_unneeded(module: fx.GraphModule, wanted: Sequence[fx.Node]) -> None:
    """Remove nodes after the last wanted one, and nodes that lead to no wanted one.

    Taps and in-place operations before the last wanted node stay.
    """
    order = list(module.graph.nodes)
    last = max(order.index(node) for node in wanted) if wanted else -1
    keep = set(wanted)
    for index, node in reversed(list(enumerate(order))):
        if node.op in ("placeholder", "output") or node in keep or node.users:
            continue
        if index > last or not has_effect(node, module):
            module.graph.erase_node(node)
    module.delete_all_unused_submodules()
    module.recompile()


def has_effect(node: fx.Node, module: fx.GraphModule) -> bool:
    """Whether a node does more than to compute its value: it is a tap, or changes something in place."""
    if changed_in_place(node):
        return True
    if node.op == "call_module":
        called = module.get_submodule(str(node.target))
        return isinstance(called, _Tapped) or bool(getattr(called, "inplace", False))
    name = str(getattr(node.target, "__name__", node.target))
    return name == "setitem" or (name.endswith("_") and not name.endswith("__")) or bool(node.kwargs.get("inplace"))
