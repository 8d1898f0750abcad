"""Calls the factory of `python:MODULE:FACTORY` and brings what it returns to what all other code expects.

That is a module in eval mode whose parameters are float32 values on the CPU and need no gradients.
"""

from __future__ import annotations

import copy
import importlib
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from pipeline.models import weights
from store.errors import UsageError

_WRAPPED = "_orig_mod"  # the one submodule of torch.compile's wrapper; it is in the names of a saved state dict too
_QUANTIZED = ".quantized."  # in the path of every module of torch that defines quantized layers


def call(target: str) -> tuple[nn.Module, dict[str, Any]]:
    """Import MODULE:FACTORY, call FACTORY, and return its network and settings. Raises UsageError if that fails."""
    module_name, _, factory_name = target.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        factory = getattr(importlib.import_module(module_name), factory_name)
    except (Exception, SystemExit) as error:  # a user's module can raise any exception when it is imported
        raise UsageError(
            f"python:{target}: {type(error).__name__}: {first_line(error)}; expected python:MODULE:FACTORY importable "
            f"from {here}"
        ) from error
    try:
        result = factory()
    except (Exception, SystemExit) as error:
        raise UsageError(f"python:{target}: the factory raised {type(error).__name__}: {first_line(error)}") from error
    network, settings = result if isinstance(result, tuple) and len(result) == 2 else (result, {})
    if not isinstance(network, nn.Module) or not isinstance(settings, Mapping):
        raise UsageError(f"python:{target}: the factory must return a module, or a module and a dict of preprocessing")
    return network, dict(settings)


def prepared(network: nn.Module, input_shape: tuple[int, ...], where: str) -> nn.Module:
    """Return a factory's network in eval mode, with float32 parameters on the CPU that need no gradients.

    input_shape: [1, C, H, W], on which lazy modules are initialized. A network that torch.compile wrapped is taken out
    of its wrapper. Raises UsageError, which begins with `where`, if the network cannot be brought to that.
    """
    network = _uncompiled(network)
    _refuse_scripted_and_quantized(network, where)
    try:
        network.eval()  # some networks override train() and return nothing
    except Exception as error:
        raise UsageError(
            f"{where}: {type(network).__name__}.eval() raises {type(error).__name__}: {first_line(error)}; return the "
            "module that it was made from"
        ) from error
    if any(_is_compiled_in_place(module) for module in network.modules()):
        network = _copied(network, where)  # a copy is not compiled
    if any(is_lazy(value) for _, value in _tensors(network)):
        _initialize(network, input_shape, where)
    if any(value.is_inference() for _, value in _tensors(network)):
        network = _copied(network, where)  # the copy's tensors can be loaded and differentiated through
    weights.check_values(network, where)
    if any(value.device.type != "cpu" for _, value in _tensors(network)):
        network.to("cpu")
    if any(value.is_floating_point() and value.dtype != torch.float32 for value in network.parameters()):
        network.float()
    network.requires_grad_(False)
    return network


def first_line(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else "no message"


def _tensors(network: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from network.named_parameters()
    yield from network.named_buffers()


def _uncompiled(network: nn.Module) -> nn.Module:
    """Return a network without torch.compile's wrappers: around itself, and around its submodules."""
    if isinstance(network, torch.jit.ScriptModule):
        return network
    while _is_wrapper(network):
        network = network.get_submodule(_WRAPPED)
    for path, module in reversed(list(network.named_modules(remove_duplicate=False))):  # inner ones first
        if _is_wrapper(module):
            parent, _, name = path.rpartition(".")
            setattr(network.get_submodule(parent), name, module.get_submodule(_WRAPPED))
    return network


def _is_wrapper(module: nn.Module) -> bool:
    return type(module).__module__.startswith("torch._dynamo.") and _WRAPPED in dict(module.named_children())


def _is_compiled_in_place(module: nn.Module) -> bool:
    """Whether `module.compile()` was called. What it keeps is the one attribute that a copied module does not get."""
    return type(module).__getstate__ is nn.Module.__getstate__ and bool(vars(module).keys() - module.__getstate__())


def _copied(network: nn.Module, where: str) -> nn.Module:
    try:
        return copy.deepcopy(network)
    except Exception as error:
        raise UsageError(
            f"{where}: {type(network).__name__} was compiled, or made in torch.inference_mode(), and cannot be copied "
            f"({type(error).__name__}: {first_line(error)}): return the network without that"
        ) from error


def _refuse_scripted_and_quantized(network: nn.Module, where: str) -> None:
    if isinstance(network, torch.jit.ScriptModule):
        raise UsageError(
            f"{where}: the factory returned a ScriptModule, whose layers cannot be reached: return the module that was "
            "scripted or traced"
        )
    for name, module in network.named_modules():
        if type(module).__module__.startswith("torch.") and _QUANTIZED in f"{type(module).__module__}.":
            raise UsageError(
                f"{where}: {name or 'the network'} is quantized ({type(module).__module__}.{type(module).__name__}): "
                "return the float network that it was made from"
            )


def _initialize(network: nn.Module, input_shape: tuple[int, ...], where: str) -> None:
    """Give lazy modules their sizes and values, with one picture of zeros."""
    try:
        with torch.no_grad():
            network(torch.zeros(input_shape))
        reason = "a submodule that the network does not use"
    except Exception as error:
        reason = f"{type(error).__name__}: {first_line(error)}"
    left = [name for name, value in _tensors(network) if is_lazy(value)]
    if left:
        raise UsageError(
            f"{where}: {left[0]} has no size, even after a picture of shape {input_shape[1:]} ({reason}): call the "
            "network once in the factory"
        )
