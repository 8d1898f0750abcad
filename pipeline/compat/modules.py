"""Private attributes of torch.nn.Module and its subclasses, and private base classes of torch.nn."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import ModuleType
from typing import Any

from torch import nn

_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
_VERSIONS = "_metadata"

_patching = threading.RLock()

# The methods of a convolution that a subclass, or one module, may replace.
CONVOLUTION_METHODS = tuple(name for name in ("forward", "_conv_forward") if hasattr(nn.Conv2d, name))


def behaves_as_its_class(module: nn.Module) -> bool:
    """Whether a module has no forward of its own and no hooks, so that its class tells what it computes."""
    return "forward" not in vars(module) and not any(getattr(module, name, ()) for name in _HOOKS)


def patching() -> AbstractContextManager[object]:
    """Return a lock for code that replaces `nn.Module.__call__` for a while, as torch.fx does when it traces."""
    return _patching


@contextmanager
def attributes_kept(network: nn.Module) -> Iterator[None]:
    """Give every module the attributes back that it had, whatever a run or a trace caches on it meanwhile.

    What is changed in place stays changed.
    """
    kept = [(module, dict(vars(module))) for module in network.modules()]
    inner = [(value, dict(value)) for _, own in kept for value in own.values() if isinstance(value, dict)]
    try:
        yield
    finally:
        for module, own in kept:
            vars(module).clear()
            vars(module).update(own)
        for value, own in inner:
            if dict.keys(value) != dict.keys(own) or any(value[key] is not own[key] for key in own):
                value.clear()
                value.update(own)


@contextmanager
def calls_through(around: Callable[[nn.Module, Callable[..., Any], Any, Any], Any]) -> Iterator[None]:
    """Replace every call of a module in this thread by `around(module, call, args, kwargs)`.

    `call(module, *args, **kwargs)` is the call itself, with the module's hooks.
    """
    thread, call = threading.get_ident(), nn.Module.__call__

    def replaced(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if threading.get_ident() != thread:
            return call(module, *args, **kwargs)
        return around(module, call, args, kwargs)

    with _patching:
        nn.Module.__call__ = replaced  # type: ignore[method-assign]
        try:
            yield
        finally:
            nn.Module.__call__ = call  # type: ignore[method-assign]


def is_hooked(module: nn.Module) -> bool:
    """Whether calling a module does more than its forward. True if that is unknown, so that nothing is fused then."""
    return any(getattr(module, name, True) for name in _HOOKS)


def remove_hooks(module: nn.Module) -> None:
    """Remove the hooks that run after a module's forward, if they can be found."""
    getattr(module, _HOOKS[0], {}).clear()


def state_versions(state: object) -> Any:
    """Return the module versions that torch keeps with a state dict, or None if it keeps none."""
    return getattr(state, _VERSIONS, None)


def set_state_versions(state: object, versions: Any) -> None:
    """Store module versions with a state dict, as some networks (mnasnet) require. Do nothing if they are None."""
    if versions is not None:
        setattr(state, _VERSIONS, versions)


def torch_classes(kind: str) -> tuple[type[nn.Module], ...]:
    """Return classes of torch.nn for `isinstance`: the private base of that kind of module, else the public classes."""
    module, name, public = _BASES[kind]
    base = getattr(module, name, None)
    return public if base is None else (base,)


_BASES: dict[str, tuple[ModuleType, str, tuple[type[nn.Module], ...]]] = {
    "convtranspose": (
        nn.modules.conv,
        "_ConvTransposeNd",
        (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
    ),
    "conv": (nn.modules.conv, "_ConvNd", (nn.Conv1d, nn.Conv2d, nn.Conv3d)),
    "instancenorm": (
        nn.modules.instancenorm,
        "_InstanceNorm",
        (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
    ),
    "batchnorm": (
        nn.modules.batchnorm,
        "_BatchNorm",
        (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm),
    ),
    "maxpool": (nn.modules.pooling, "_MaxPoolNd", (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)),
    "avgpool": (nn.modules.pooling, "_AvgPoolNd", (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)),
    "adaptiveavgpool": (
        nn.modules.pooling,
        "_AdaptiveAvgPoolNd",
        (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
    ),
    "adaptivemaxpool": (
        nn.modules.pooling,
        "_AdaptiveMaxPoolNd",
        (nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d),
    ),
}
