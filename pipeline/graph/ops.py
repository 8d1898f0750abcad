"""Name what a node does, in one vocabulary for modules, functions and methods: `conv`, `relu`, `add`, `cat`, ..."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from pipeline.compat.modules import CONVOLUTION_METHODS, behaves_as_its_class, torch_classes

# These classes and their subclasses become single nodes: tracing into them would hide which operation they are.
ELEMENTARY: tuple[tuple[tuple[type[nn.Module], ...], str], ...] = (
    (torch_classes("convtranspose"), "convtranspose"),
    (torch_classes("conv"), "conv"),
    ((nn.Linear,), "linear"),
    (torch_classes("instancenorm"), "instancenorm"),
    (torch_classes("batchnorm"), "batchnorm"),
    ((nn.LayerNorm,), "layernorm"),
    ((nn.RMSNorm,), "rmsnorm"),
    ((nn.GroupNorm,), "groupnorm"),
    (torch_classes("maxpool"), "maxpool"),
    (torch_classes("avgpool"), "avgpool"),
    (torch_classes("adaptiveavgpool"), "adaptiveavgpool"),
    (torch_classes("adaptivemaxpool"), "adaptivemaxpool"),
)
NORMS = frozenset({"batchnorm", "layernorm", "rmsnorm", "groupnorm", "instancenorm", "localresponsenorm"})
ACTIVATIONS = frozenset(
    {
        "relu",
        "relu6",
        "leakyrelu",
        "prelu",
        "rrelu",
        "elu",
        "selu",
        "celu",
        "gelu",
        "gelutanh",
        "quickgelu",
        "silu",
        "swish",
        "mish",
        "hardswish",
        "hardmish",
        "hardtanh",
        "hardsigmoid",
        "sigmoid",
        "tanh",
        "tanhshrink",
        "softplus",
        "softsign",
        "logsigmoid",
        "softshrink",
        "hardshrink",
        "threshold",
        "clamp",
        "clip",
        "glu",
    }
)
RESHAPES = frozenset({"view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "viewas", "reshapeas"})
PERMUTES = frozenset({"permute", "transpose", "swapaxes", "swapdims", "t", "movedim", "moveaxis"})
# These keep every value at its position in eval mode. The search for a node's consumers looks through them.
IDENTITIES = frozenset(
    {
        "dropout",
        "alphadropout",
        "featurealphadropout",
        "stochasticdepth",
        "droppath",
        "dropblock",
        "identity",
        "contiguous",
        "clone",
        "to",
        "float",
        "type",
        "astensor",
    }
)
TRANSPARENT = IDENTITIES | RESHAPES | PERMUTES
MATMULS = frozenset({"matmul", "bmm", "baddbmm", "scaleddotproductattention"})
_ALIASES = {
    "iadd": "add",
    "isub": "sub",
    "imul": "mul",
    "multiply": "mul",
    "subtract": "sub",
    "itruediv": "div",
    "truediv": "div",
    "divide": "div",
    "concat": "cat",
    "concatenate": "cat",
    "upsample": "interpolate",
}
_IN_PLACE = "changes_its_input"
CUSTOM = "custom-"  # begins the kind of what only its user knows
# The packages whose functions and classes do what their names say.
_KNOWN = frozenset({"torch", "torchvision", "timm", "math", "builtins", "_operator", "pipeline"})


@dataclass(frozen=True)
class Op:
    """What a node does. `kind` is a word of the vocabulary.

    A norm with a built-in activation sets both flags and has the kind of the activation.
    """

    kind: str
    module: nn.Module | None
    norm: bool
    activation: bool


def _word(name: str) -> str:
    word = re.sub(r"(?<=[a-z])[123]d$", "", name.lower().replace("_", ""))
    return _ALIASES.get(word, word)


def has_known_forward(module: nn.Module) -> bool:
    """Whether the forward of a module's class, and what else a convolution computes with, is torch's or timm's."""
    if isinstance(module, torch.jit.ScriptModule):
        return False
    return all(_is_known(_definer(module, name).__module__) for name in CONVOLUTION_METHODS if hasattr(module, name))


def _definer(module: nn.Module, name: str) -> type:
    """Return the class, of a module's class and its bases, that defines a method."""
    return next(cls for cls in type(module).__mro__ if name in vars(cls))


def _is_known(defined_in: str | None) -> bool:
    """Whether functions and classes of this Python module do what their names say. Some of torch's name none."""
    return defined_in is None or defined_in.partition(".")[0] in _KNOWN


def _is_made(cls: type) -> bool:
    """Whether a class is one that torch makes for a module with parametrizations, which computes as its base does."""
    return cls.__module__ == parametrize.__name__


def module_kind(module: nn.Module) -> str:
    """Return what a module computes: a word of the vocabulary, or "custom-" and its class if only its user knows.

    A module's class does not tell what it computes if its forward is not torch's or timm's, or if the module has a
    forward of its own or hooks.
    """
    if not behaves_as_its_class(module) or not has_known_forward(module):
        return f"{CUSTOM}{_word(type(module).__name__)}"
    for classes, kind in ELEMENTARY:
        if isinstance(module, classes):
            return kind
    return _word(next(cls.__name__ for cls in type(module).__mro__ if _is_known(cls.__module__) and not _is_made(cls)))


def fused_activation(module: nn.Module) -> nn.Module | None:
    """Return the activation inside a norm such as timm's BatchNormAct2d, or None if there is none.

    torch's own norms compute none, whatever attributes they were given.
    """
    if _definer(module, "forward").__module__.startswith("torch."):
        return None
    act = getattr(module, "act", None)
    return act if isinstance(act, nn.Module) and not isinstance(act, nn.Identity) else None


def op_of(node: fx.Node, root: nn.Module) -> Op:
    if node.op == "call_module":
        module = root.get_submodule(str(node.target))
        kind = module_kind(module)
        act = fused_activation(module) if kind in NORMS else None
        if act is not None:
            return Op(module_kind(act), module, norm=True, activation=True)
        # EvoNorm, FilterResponseNorm and similar norms of timm are recognized by their class names
        norm = kind in NORMS or (kind not in ACTIVATIONS and "norm" in kind and not kind.startswith(CUSTOM))
        return Op(kind, module, norm=norm, activation=kind in ACTIVATIONS)
    if node.op in ("call_function", "call_method"):
        name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
        known = isinstance(node.target, str) or _is_known(getattr(node.target, "__module__", None))
        kind = _word(name) if known else f"{CUSTOM}{_word(name)}"
        return Op(kind, None, norm=kind in NORMS, activation=kind in ACTIVATIONS)
    return Op(node.op, None, norm=False, activation=False)


def mark_in_place(node: fx.Node, changed: Iterable[fx.Node]) -> None:
    """Note on a node which of its inputs it changes in place. Copies of the graph keep the names."""
    node.meta[_IN_PLACE] = tuple(source.name for source in changed)


def changed_in_place(node: fx.Node) -> tuple[str, ...]:
    """Return the names of the inputs that a node was seen to change in place (`shapes.propagate`)."""
    return tuple(node.meta.get(_IN_PLACE, ()))


def argument(node: fx.Node, position: int, name: str, default: Any = None) -> Any:
    """Return an argument of a function or method call that was passed by position or by name."""
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def data_input(node: fx.Node) -> fx.Node | None:
    """Return the first node among the arguments, which a layer works on, or None if no argument is a node."""
    return next(iter(node.all_input_nodes), None)


def parameters_of(node: fx.Node, root: nn.Module) -> Iterator[Tensor]:
    """Yield the parameters that a node uses: those of its module, or those passed to its function."""
    if node.op == "call_module":
        yield from root.get_submodule(str(node.target)).parameters()
        return
    for source in node.all_input_nodes:
        if source.op == "get_attr":
            value = attribute(root, str(source.target))
            if isinstance(value, nn.Parameter):
                yield value


def attribute(root: nn.Module, target: str) -> Any:
    value: Any = root
    for part in target.split("."):
        value = getattr(value, part)
    return value
