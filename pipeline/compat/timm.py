"""timm's lists of modules and functions that tracers must not enter, and tests for its classes. timm may be missing."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from torch import nn

_ACTIVATION_MODULES = "timm.layers.activations"  # a prefix: there is `activations_me` too
_ACTIVATIONS = (  # those that timm.layers exports
    "GELU",
    "GELUTanh",
    "HardMish",
    "HardSigmoid",
    "HardSwish",
    "Mish",
    "PReLU",
    "QuickGELU",
    "Sigmoid",
    "Swish",
    "Tanh",
)
# Layers in timm's lists: their forward cannot be traced, or tracing it would hide which operation they are.
_LEAVES = (
    "AvgPool2dSame",
    "BatchNormAct2d",
    "CondConv2d",
    "Conv2dSame",
    "FrozenBatchNormAct2d",
    "InplaceAbn",
    "ScaledStdConv2dSame",
    "StdConv2dSame",
    "SyncBatchNormAct",
)


def has_parts(network: nn.Module) -> bool:
    """Whether any module of a network is of a class that timm defines."""
    return any(type(part).__module__.startswith("timm.") for part in network.modules())


def leaves() -> tuple[tuple[type, ...], tuple[Callable[..., Any], ...]]:
    """Return the classes and functions that a tracer must not enter, as timm lists them.

    Of its classes, only layers. Blocks of single models are listed too, because timm's own extraction drops operations
    in place; most can be traced. If timm has no such lists, these are the layers known to need it, and no functions.
    """
    from timm import layers, models

    classes, functions = (getattr(models, f"get_notrace_{part}", None) for part in ("modules", "functions"))
    if classes is None or functions is None:
        return tuple(getattr(layers, name) for name in _LEAVES if hasattr(layers, name)), ()
    layers_alone = tuple(cls for cls in classes() if cls.__module__.startswith("timm.layers."))
    return layers_alone, tuple(f for f in functions() if callable(f))


def is_activation(module: nn.Module) -> bool:
    """Whether a module is one of timm's own activations."""
    own = type(module)
    return own.__module__.startswith(_ACTIVATION_MODULES) or any(_is_exported(own, name) for name in _ACTIVATIONS)


def is_same_padded(conv: nn.Module) -> bool:
    """Whether a module is timm's convolution with TensorFlow's "same" padding, which depends on the picture's size."""
    return _is_exported(type(conv), "Conv2dSame")


def _is_exported(cls: type, name: str) -> bool:
    """Whether timm.layers exports this class under that name. A class of timm exists only if timm is imported."""
    return cls.__name__ == name and cls is getattr(sys.modules.get("timm.layers"), name, None)
