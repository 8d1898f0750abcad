"""Find the logits in what a network returns: a tensor, or a mapping, tuple, named tuple or dataclass of tensors."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn

from pipeline.graph.analysis.shapes import BATCH, Shapes
from pipeline.graph.nested import parts
from pipeline.graph.ops import IDENTITIES, RESHAPES, op_of
from pipeline.graph.trace import file_name

LOGITS = "logits"
# Names of a network's last module. Where it is Identity, somebody removed the classifier, or there never was one.
_CLASSIFIERS = frozenset({"head", "heads", "fc", "classifier", "last_linear", "logits"})


@dataclass(frozen=True)
class _Output:
    """One tensor in what a network returns: its name there, and how it is reached from a node."""

    name: str
    node: fx.Node
    steps: tuple[tuple[bool, Any], ...]  # by attribute or by item, and the name or key
    shape: tuple[int, ...]
    real: bool

    @property
    def may_be_logits(self) -> bool:
        return self.real and len(self.shape) == 2 and self.shape[0] == BATCH


def choose(module: fx.GraphModule, paths: dict[str, str], shapes: Shapes) -> tuple[fx.Node | None, str]:
    """Return the node of the logits, or None and why there are none.

    Of several outputs, these are the one named `logits`, or else the only one that is [n, classes]. If no node is that
    tensor alone, one is added to the graph; `paths` and `shapes` get its entry.
    """
    result = next(iter(reversed(module.graph.nodes)))
    found = list(_outputs("", result.args[0], (), shapes))
    fitting = [output for output in found if output.may_be_logits]
    named = [output for output in fitting if output.name.rpartition(".")[2].lower() == LOGITS]
    if len(named) != 1 and len(fitting) != 1:
        return None, _reason(found, fitting)
    chosen = (named if len(named) == 1 else fitting)[0]
    node = chosen.node
    for by_attribute, key in chosen.steps:
        with module.graph.inserting_before(result):
            node = module.graph.call_function(getattr if by_attribute else operator.getitem, (node, key))
        paths[node.name] = _free(file_name(f"{paths[chosen.node.name]}.{key}"), paths)
    while (source := _passed_on(node, module)) is not None:
        if _is_removed_classifier(node, module):
            return None, f"{paths[node.name]} is no classifier (Identity), so the network returns features"
        if shapes.of.get(source) != shapes.of.get(node):
            break
        node = source  # the layer keeps the classifier's name through `flatten`
    if chosen.steps:
        shapes.of[node] = chosen.shape
        shapes.real.add(node)
    if node is not result.args[0]:
        result.args = (node,)
        module.recompile()
    return node, ""


def _passed_on(node: fx.Node, module: fx.GraphModule) -> fx.Node | None:
    """Return the only input of a node that passes values on as they are (flatten, dropout), or None for others."""
    passes = op_of(node, module).kind in IDENTITIES | RESHAPES
    return node.all_input_nodes[0] if passes and len(node.all_input_nodes) == 1 else None


def _is_removed_classifier(node: fx.Node, module: fx.GraphModule) -> bool:
    named = str(node.target).rpartition(".")[2] in _CLASSIFIERS
    return named and isinstance(op_of(node, module).module, nn.Identity)


def _outputs(
    name: str, value: Any, steps: tuple[tuple[bool, Any], ...], shapes: Shapes, node: fx.Node | None = None
) -> Iterator[_Output]:
    if isinstance(value, fx.Node):
        if isinstance(value.target, type):  # the network makes a named tuple or dataclass of nodes
            names = [key for key, _ in parts(shapes.structured.get(value))]
            given = dict(zip(names, value.args, strict=False)) | dict(value.kwargs)
            for key, part in given.items():
                yield from _outputs(f"{name}.{key}" if name else str(key), part, (), shapes)
        elif value in shapes.of:
            yield _Output(name, value, (), shapes.of[value], value in shapes.real)
        else:
            yield from _outputs(name, shapes.structured.get(value), (), shapes, value)
    elif isinstance(value, Tensor):
        if node is not None:  # else the network returns a constant
            yield _Output(name, node, steps, tuple(value.shape), value.is_floating_point())
    else:
        indexed = isinstance(value, (Mapping, list, tuple))
        for key, part in parts(value):
            step = (not indexed or hasattr(value, "_fields"), key)
            yield from _outputs(f"{name}.{key}" if name else str(key), part, (*steps, step), shapes, node)


def _free(path: str, paths: Mapping[str, str]) -> str:
    taken = {known.casefold() for known in paths.values()}
    while path.casefold() in taken:
        path += "_1"
    return path


def _reason(found: list[_Output], fitting: list[_Output]) -> str:
    if not found:
        return "the network returns no tensor that follows from the picture"
    texts = [f"{output.name} {_shape_text(output.shape)}".strip() for output in found]
    if fitting:
        return (
            f"several outputs may be the logits ({', '.join(texts)}): give a factory (python:MODULE:FACTORY) whose "
            "network returns one of them, or a dict in which it is named logits"
        )
    wanted = "one value for each class, [n, classes]"
    if len(texts) == 1:
        return f"the output {texts[0]} is not {wanted}"
    return f"none of the outputs {', '.join(texts)} is {wanted}"


def _shape_text(shape: tuple[int, ...]) -> str:
    return f"[{', '.join('n' if i == 0 and size == BATCH else str(size) for i, size in enumerate(shape))}]"
