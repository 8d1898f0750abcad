"""A network as a graph of named layers."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from math import inf, prod

import torch
from torch import fx, nn

from pipeline.graph import default_layers, ops, outputs
from pipeline.graph.analysis import axes, bounds, cost, receptive, shapes
from pipeline.graph.fidelity import Findings, faithful_trace, warn
from pipeline.graph.layer import Layer, Layout
from pipeline.graph.trace import trace
from store.errors import Notice, UsageError, did_you_mean
from store.layer_globs import matching

_LISTED = 24  # most layer names that an error lists


class Graph:
    """A traced network. `module` computes the same bits as the original network.

    `logits` is the name of the node that is [N, classes] in what the network returns (`outputs.choose`), or None. Then
    `no_logits` says why. If there are logits, they are all that `module` returns. `results`: the name of the node that
    is the result of a module's last call, by the module's path.
    """

    def __init__(
        self,
        module: fx.GraphModule,
        paths: Mapping[str, str],
        input_shape: tuple[int, ...],
        findings: Findings | None = None,
        results: Mapping[str, str] | None = None,
    ):
        self.module = module
        self.input_shape = input_shape
        self.findings = findings or Findings()
        self._results = results or {}
        found = shapes.propagate(module, input_shape)
        self._paths = dict(paths)
        logits, self.no_logits = outputs.choose(module, self._paths, found)
        self._nodes: tuple[fx.Node, ...] = tuple(module.graph.nodes)
        self._ops = {node: ops.op_of(node, module) for node in self._nodes}
        self._shapes, self._real = found.of, found.real
        self._depends = shapes.dependence(module, self._shapes)
        self._axes = axes.infer(module, self._ops, found, logits, self._shapes_elsewhere)
        self.logits = logits.name if logits is not None else None

    @property
    def memory_format(self) -> torch.memory_format:
        """The format in which copies of `module` run best: channels last, unless that changes what they compute."""
        return self.findings.memory_format

    def layers(self, choose: str | Sequence[str] = "blocks") -> tuple[Layer, ...]:
        """Return layers in execution order, with indices from 0.

        choose: "blocks" (the default layers), "all", a name, a glob, or a list of names and globs. The path of a module
        stands for the layer that is its result, with a notice. Raises UsageError if a name or glob matches no layer.
        """
        if choose == "all":
            picked = list(self._all)
        elif choose == "blocks":
            view = default_layers.View(self._nodes, self._ops, self._shapes, self._axes, self._depends)
            names = {node.name for node in default_layers.choose(view, self.logits)}
            picked = [layer for layer in self._all if layer.node in names and not layer.layout.only_prefix]
        else:
            wanted = self._matching([choose] if isinstance(choose, str) else choose)
            picked = [layer for layer in self._all if layer.name in wanted]
        return tuple(replace(layer, index=index) for index, layer in enumerate(picked))

    def edges(self, layers: Sequence[Layer]) -> tuple[tuple[str, str], ...]:
        """Return pairs (source, target): a path leads from source to target through no other of these layers."""
        names: dict[str, list[str]] = {}
        for layer in layers:
            names.setdefault(layer.node, []).append(layer.name)
        nearest: dict[fx.Node, tuple[str, ...]] = {}
        pairs: list[tuple[str, str]] = []
        for node in self._nodes:
            above = dict.fromkeys(name for source in node.all_input_nodes for name in nearest[source])
            here = names.get(node.name, [])
            pairs += [(source, target) for target in here for source in above]
            nearest[node] = tuple(here) or tuple(above)
        return tuple(pairs)

    def sizes(self) -> dict[str, int]:
        """Return the number of values per picture in each node's output, for nodes whose first axis is the batch."""
        first = {node: node_axes.roles[:1] for node, node_axes in self._axes.items() if node in self._real}
        return {node.name: prod(shape[1:]) for node, shape in self._shapes.items() if first.get(node) == "n"}

    @cached_property
    def sized(self) -> frozenset[str]:
        """The names of nodes whose values follow from the size of the batch of pictures, and not from their pixels."""
        return frozenset(node.name for node, level in self._depends.items() if level == 0)

    def cost(self, layer: Layer) -> int:
        """Estimate a forward and backward pass from the picture to this layer, in multiply-accumulates."""
        return cost.up_to(next(node for node in self._nodes if node.name == layer.node), self._costs)

    def _shapes_elsewhere(self) -> dict[fx.Node, tuple[int, ...]]:
        """Return the shapes for a picture that is larger in height and in width, or none if it is not taken."""
        batch, channels, height, width = self.input_shape
        try:
            return shapes.propagate(self.module, (batch, channels, height + 32, width + 64)).of
        except UsageError:
            return {}

    @cached_property
    def _costs(self) -> dict[fx.Node, int]:
        return cost.of_nodes(self.module, self._shapes)

    @cached_property
    def _all(self) -> tuple[Layer, ...]:
        limits = bounds.intervals(self.module, self._ops)
        fields = receptive.fields(self.module, self._ops, self._shapes, self._axes)
        layers: list[Layer] = []
        for node in self._nodes:
            if node not in self._real or node not in self._axes or self._depends[node] < 2:
                continue
            for shape in axes.layouts(self._axes[node], self._shapes[node], shapes.BATCH):
                layers.append(self._layer(node, shape, limits[node], fields[node]))
        return tuple(layers)

    def _layer(
        self,
        node: fx.Node,
        shape: tuple[Layout, int, int, int],
        limits: bounds.Interval,
        field: receptive.Field,
    ) -> Layer:
        layout, channels, height, width = shape
        span = field.square() if layout.spatial and not layout.only_prefix else None
        return Layer(
            index=0,
            name=self._paths[node.name] + ("@prefix" if layout.only_prefix else ""),
            node=node.name,
            op=self._ops[node].kind,
            channels=channels,
            height=height,
            width=width,
            signed=limits[0] < 0,
            upper_bound=limits[1] if limits[1] < inf else None,
            rf_size=span.size if span else None,
            rf_stride=span.stride if span else None,
            rf_offset=span.offset if span else None,
            rf_global=span is None,
            rf_gated=field.gated,
            layout=layout,
        )

    def _matching(self, patterns: Sequence[str]) -> set[str]:
        names = [layer.name for layer in self._all]
        found = [self._result_of(pattern, names) or pattern for pattern in patterns]
        return set(matching(names, found, lambda glob: UsageError(_no_match(glob, names))))

    def _result_of(self, pattern: str, names: Sequence[str]) -> str | None:
        """Return the layer that is a module's result, and say so, if a pattern is a module's path and no layer."""
        if pattern in names or pattern not in self._results:
            return None
        name = self._paths.get(self._results[pattern])
        if name not in names:
            return None
        warnings.warn(f"{pattern} is a module; its result is the layer {name}", Notice, stacklevel=4)
        return name


def build(network: nn.Module, family: str, input_shape: tuple[int, ...], known: Findings | None = None) -> Graph:
    """Trace a network, which must be in eval mode, and check the trace against the network.

    family: "torchvision", "timm" or "python"; input_shape: [1, C, H, W]; `known`: what an earlier check found, which is
    then not repeated. What a person should know of it is a warning. Raises UsageError if the network
    cannot be traced faithfully or does not run on that shape.
    """
    if known is None:
        traced, findings = faithful_trace(network, family, input_shape)
    else:
        traced, findings = trace(network, family, known.whole, known.in_place)[0], known
    warn(network, findings)
    return Graph(traced.module, traced.paths, input_shape, findings, traced.results)


def _no_match(pattern: str, names: Sequence[str]) -> str:
    under = [name for name in names if name.startswith(f"{pattern}.")]
    if under:
        more = f" and {len(under) - _LISTED} more" if len(under) > _LISTED else ""
        return f"{pattern} is a module, not a layer; the layers in it: {', '.join(under[:_LISTED])}{more}"
    hint = did_you_mean(pattern, names) or "`unitscope layers MODEL --all` lists them"
    return f"no layer matches {pattern!r}: {hint}"
