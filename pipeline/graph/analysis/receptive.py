"""Receptive fields, from the graph: which input pixels a position of each node's map can depend on."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from torch import fx

from pipeline.graph.analysis.axis import Axes
from pipeline.graph.ops import MATMULS, Op, argument, parameters_of

Shapes = Mapping[fx.Node, tuple[int, ...]]


@dataclass(frozen=True)
class Span:
    """Along one axis, position p covers the `size` pixels that start at offset + p * stride."""

    size: int
    stride: int
    offset: int


@dataclass(frozen=True)
class Field:
    """The receptive field of a node's positions.

    `spans`: one per axis, height first; None if a position can depend on the whole picture, or if nothing is known.
    `gated`: values are also scaled by something with a wider field (a squeeze-excite gate, the statistics of a group
    norm), which `spans` leaves out.
    """

    spans: tuple[Span, Span] | None
    gated: bool = False

    def square(self) -> Span | None:
        """Return one span that covers both axes, which differ between a 1x7 and a 7x1 convolution; None if unknown."""
        if self.spans is None or self.spans[0].stride != self.spans[1].stride:
            return None
        return _union(self.spans)


@dataclass(frozen=True)
class _Window:
    kernel: int
    stride: int
    padding: int
    dilation: int


def fields(
    module: fx.GraphModule, ops: Mapping[fx.Node, Op], shapes: Shapes, axes: Mapping[fx.Node, Axes]
) -> dict[fx.Node, Field]:
    """Return the field of every node that depends on the picture and whose axes are known."""
    known: dict[fx.Node, Field] = {}
    for node in module.graph.nodes:
        if node.op == "placeholder":
            known[node] = Field((Span(1, 1, 0), Span(1, 1, 0)))
        elif node in axes:  # leave out sizes, and what is computed from weights alone
            sources = [source for source in node.all_input_nodes if source in known]
            if sources:
                known[node] = _step(node, ops[node], sources, known, shapes, axes)
    return known


def _step(
    node: fx.Node,
    op: Op,
    sources: Sequence[fx.Node],
    known: Mapping[fx.Node, Field],
    shapes: Shapes,
    axes: Mapping[fx.Node, Axes],
) -> Field:
    source = sources[0]
    gated = any(known[s].gated for s in sources) or op.kind in ("groupnorm", "instancenorm")
    lost = Field(None, gated)
    if op.kind in MATMULS or op.kind in ("einsum", "multiheadattention", "roll", "softmax"):
        return lost
    if node not in shapes or source not in shapes:
        return replace(known[source], gated=gated) if op.kind in ("chunk", "split", "getitem", "unbind") else lost
    spans = known[source].spans
    if op.kind in ("conv", "maxpool", "avgpool", "convtranspose", "interpolate", "adaptiveavgpool", "adaptivemaxpool"):
        if spans is None or axes[source].roles[2:] != "hw" or len(shapes[node]) != 4:
            return lost
        moved = [_slide(node, op, spans[i], i, shapes, source) for i in (0, 1)]
        return Field((moved[0], moved[1]), gated) if moved[0] and moved[1] else lost
    if op.kind == "pad":
        return Field(_padded(node, op, spans), gated) if spans is not None and axes[source].roles[2:] == "hw" else lost
    if op.kind == "linear" and axes[source].roles[-1] in "hwt":
        return lost
    return _merge(node, op, sources, known, shapes, axes, gated)


def _merge(
    node: fx.Node,
    op: Op,
    sources: Iterable[fx.Node],
    known: Mapping[fx.Node, Field],
    shapes: Shapes,
    axes: Mapping[fx.Node, Axes],
    gated: bool,
) -> Field:
    """Unite the fields of inputs on the same grid. A smaller factor of a product is a gate and only sets `gated`."""
    spans: tuple[Span, Span] | None = None
    grid = _places(node, shapes, axes)
    for source in sources:
        if source not in shapes:
            return Field(None, gated)
        same = shapes[source] == shapes[node] or (grid is not None and _places(source, shapes, axes) == grid)
        if not same and op.kind == "mul" and prod(shapes[source]) < prod(shapes[node]):
            gated = True
            continue
        source_spans = known[source].spans
        if not same or source_spans is None or _opaque(node, op):
            return Field(None, gated)
        pairs = [source_spans] if spans is None else [spans, source_spans]
        if any(pair[i].stride != source_spans[i].stride for pair in pairs for i in (0, 1)):
            return Field(None, gated)
        spans = _union([pair[0] for pair in pairs]), _union([pair[1] for pair in pairs])
    return Field(spans, gated)


def _opaque(node: fx.Node, op: Op) -> bool:
    """Whether a node may mix positions: it has weights and is no operation known to keep them apart."""
    if op.norm or op.activation or op.kind in ("linear", "add", "mul", "sub", "div", "cat"):
        return False
    return any(True for _ in parameters_of(node, node.graph.owning_module)) if node.graph.owning_module else True


def _places(node: fx.Node, shapes: Shapes, axes: Mapping[fx.Node, Axes]) -> tuple[int, ...] | None:
    """Return the height and width of a node's map, () if it has none or one position, None if they are unknown."""
    node_axes, shape = axes.get(node), shapes[node]
    if node_axes is None:
        return None
    if node_axes.places is not None:
        return node_axes.places if prod(node_axes.places) > 1 else ()
    return () if len(shape) == 2 and node_axes.roles == "nc" else None


def _union(spans: Sequence[Span]) -> Span:
    low = min(span.offset for span in spans)
    return Span(max(span.offset + span.size for span in spans) - low, spans[0].stride, low)


def _pair(value: Any) -> tuple[int, int]:
    return (value[0], value[-1]) if isinstance(value, (tuple, list)) else (value, value)


def _slide(node: fx.Node, op: Op, span: Span, axis: int, shapes: Shapes, source: fx.Node) -> Span | None:
    before, after = shapes[source][2 + axis], shapes[node][2 + axis]
    if op.kind in ("adaptiveavgpool", "adaptivemaxpool"):
        if before % after or after == 1:
            return span if before == after else None
        return _moved(span, _Window(before // after, before // after, 0, 1))
    if op.kind == "interpolate":
        mode = getattr(op.module, "mode", argument(node, 3, "mode", "nearest"))
        return _enlarged(span, before, after, mode)
    window = _window(node, op, axis, shapes, before, after)
    if window is None or op.kind == "convtranspose":
        return None if window is None else _transposed(span, window)
    return _moved(span, window)


def _moved(span: Span, window: _Window) -> Span:
    reach = (window.kernel - 1) * window.dilation
    return Span(
        span.size + reach * span.stride, span.stride * window.stride, span.offset - window.padding * span.stride
    )


def _window(node: fx.Node, op: Op, axis: int, shapes: Shapes, before: int, after: int) -> _Window | None:
    settings = _settings_of_call(node, op, shapes) if op.module is None else _settings_of_module(op.module)
    parts = [part for value in settings or () for part in (value if isinstance(value, (tuple, list)) else [value])]
    if settings is None or any(isinstance(part, fx.Node) for part in parts):
        return None
    kernel, stride, padding, dilation = settings
    k, d = _pair(kernel)[axis], _pair(dilation)[axis]
    s = _pair(kernel if stride is None or stride == [] else stride)[axis]
    if padding == "same":
        return _Window(k, s, max((after - 1) * s + (k - 1) * d + 1 - before, 0) // 2, d)
    return _Window(k, s, 0 if padding == "valid" else _pair(padding)[axis], d)


def _settings_of_module(module: Any) -> tuple[Any, Any, Any, Any]:
    """Return kernel size, stride, padding and dilation."""
    # timm's "same" layers pad by the picture's size and put the extra pixel last
    padding = "same" if "same" in type(module).__name__.lower() else module.padding
    return module.kernel_size, module.stride, padding, getattr(module, "dilation", 1)


def _settings_of_call(node: fx.Node, op: Op, shapes: Shapes) -> tuple[Any, Any, Any, Any] | None:
    if op.kind == "conv":
        kernel = _kernel_of(node, shapes)
        rest = argument(node, 3, "stride", 1), argument(node, 4, "padding", 0), argument(node, 5, "dilation", 1)
        return None if kernel is None else (kernel, *rest)
    if op.kind in ("maxpool", "avgpool"):
        kernel, stride, padding = (
            argument(node, 1, "kernel_size"),
            argument(node, 2, "stride"),
            argument(node, 3, "padding", 0),
        )
        return kernel, stride, padding, argument(node, 4, "dilation", 1) if op.kind == "maxpool" else 1
    return None


def _kernel_of(node: fx.Node, shapes: Shapes) -> tuple[int, int] | None:
    weight = argument(node, 1, "weight")
    shape = shapes.get(weight, ()) if isinstance(weight, fx.Node) else ()
    return (shape[2], shape[3]) if len(shape) == 4 else None


def _padded(node: fx.Node, op: Op, spans: tuple[Span, Span]) -> tuple[Span, Span] | None:
    given = getattr(op.module, "padding", None) if op.module is not None else argument(node, 1, "pad")
    if not isinstance(given, (tuple, list)) or len(given) != 4 or any(isinstance(v, fx.Node) for v in given):
        return None
    left, top = int(given[0]), int(given[2])
    height, width = spans
    return (
        replace(height, offset=height.offset - top * height.stride),
        replace(width, offset=width.offset - left * width.stride),
    )


def _enlarged(span: Span, before: int, after: int, mode: str) -> Span | None:
    """Return the span after upsampling by a whole factor f. Output p reads the inputs next to (p + 0.5) / f - 0.5."""
    factor = after // before
    if before * factor != after or span.stride % factor or mode not in ("nearest", "nearest-exact", "bilinear"):
        return None
    if mode.startswith("nearest"):
        return _resampled(span, factor, [(p // factor, p // factor) for p in range(factor)])
    reads = [(2 * p + 1 - factor) / (2 * factor) for p in range(factor)]
    return _resampled(span, factor, [(int(q // 1), int(-(-q // 1))) for q in reads])


def _transposed(span: Span, window: _Window) -> Span | None:
    """Return the span after a transposed convolution, or None if its stride does not divide the span's.

    Output p reads the inputs q with p = q * stride - padding + j * dilation.
    """
    if span.stride % window.stride:
        return None
    reach = (window.kernel - 1) * window.dilation
    reads = [
        (-(-(p + window.padding - reach) // window.stride), (p + window.padding) // window.stride)
        for p in range(window.stride)
    ]
    return _resampled(span, window.stride, reads)


def _resampled(span: Span, factor: int, reads: Sequence[tuple[int, int]]) -> Span:
    """Return the smallest span of 1 / factor of the stride that covers what each of the first `factor` outputs reads.

    reads: the first and last input that each of these outputs reads.
    """
    stride = span.stride // factor
    low = min(first * span.stride - p * stride for p, (first, _) in enumerate(reads))
    high = max(last * span.stride + span.size - p * stride for p, (_, last) in enumerate(reads))
    return Span(high - low, stride, span.offset + low)
