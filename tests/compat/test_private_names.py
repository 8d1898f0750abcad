"""Private and undocumented names of torch, torchvision and timm are used in pipeline/compat alone."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import pytest
from support import ROOT

LIBRARIES = ("torch", "torchvision", "timm")
ACCESS = {"getattr", "hasattr", "setattr", "delattr"}
COMPAT = ROOT / "pipeline" / "compat"


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name not in ("_", "_fields")  # of named tuples


def _sources() -> dict[str, ast.Module]:
    files = [ROOT / "unitscope.py"]
    files += [path for room in ("pipeline", "query", "store", "benchmarks") for path in (ROOT / room).rglob("*.py")]
    return {str(path.relative_to(ROOT)): ast.parse(path.read_text()) for path in files if COMPAT not in path.parents}


def _defined(tree: ast.Module) -> set[str]:
    """Names that a file gives to functions, classes, variables, fields and attributes of its own objects."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            found |= {node.attr} if ast.unparse(node.value) in ("self", "cls") else set()
    return found


def _other_modules(tree: ast.Module) -> set[str]:
    """Names under which a file imports what is of no library looked at here (`os`, whose `_exit` is documented)."""
    names = (alias for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names)
    return {a.asname or a.name.partition(".")[0] for a in names if a.name.partition(".")[0] not in LIBRARIES}


def _uses(tree: ast.Module, own: set[str]) -> Iterator[str]:
    """Where a file reaches for a name that the libraries do not document."""
    others = _other_modules(tree)
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            module = getattr(node, "module", None) or ""
            names = [f"{module}.{alias.name}".strip(".") for alias in node.names]
            for name in names:
                first, *rest = name.split(".")
                if first in LIBRARIES and (any(map(_is_private, rest)) or name.startswith("torch.ops")):
                    yield f"{node.lineno}: import of {name}"
        elif isinstance(node, ast.Attribute):
            of = ast.unparse(node.value)
            if of == "torch.ops" and node.attr != "unitscope":
                yield f"{node.lineno}: torch.ops.{node.attr}"
            elif _is_private(node.attr) and node.attr not in own and of not in others:
                yield f"{node.lineno}: {of}.{node.attr}"
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ACCESS:
            for argument in node.args[1:2]:
                if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                    name = argument.value
                    if name in ("eval_cache", "ops") or (_is_private(name) and name not in own):
                        yield f"{node.lineno}: {node.func.id}(..., {name!r})"


def _names_in_compat() -> set[str]:
    """Private names of the libraries that the package spells out, in strings."""
    found = {"eval_cache", "get_notrace_modules", "get_notrace_functions", "TorchDynamoException"}
    for path in COMPAT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Constant)
                and isinstance(node.value, str)
                and re.fullmatch(r"_[A-Za-z]\w+", node.value)
            ):
                found.add(node.value)
    return found


def test_private_names_are_used_in_compat_alone() -> None:
    sources = _sources()
    assert len(sources) > 100
    own = set().union(*map(_defined, sources.values()))
    found = [f"{path}:{use}" for path, tree in sources.items() for use in _uses(tree, own)]
    assert not found, "\n".join(found)


def test_names_that_compat_spells_are_spelt_nowhere_else() -> None:
    known = _names_in_compat()
    assert known >= {"_forward_hooks", "_convolution_pointwise", "_metadata", "_loader", "_ConvNd"}
    found = [
        f"{path}:{node.lineno}: {name}"
        for path, tree in _sources().items()
        for foreign in [known - _defined(tree)]  # a file may have attributes of its own of such a name
        for node in ast.walk(tree)
        for name in [getattr(node, "attr", getattr(node, "id", getattr(node, "value", None)))]
        if isinstance(name, str) and name in foreign
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "line",
    [
        "from torch._subclasses.fake_tensor import FakeTensorMode",
        "from torch.nn.modules.conv import _ConvNd",
        "import torch._inductor.config",
        "from timm.models import _features_fx",
        "from timm.models._features_fx import get_notrace_modules",
        "from torch.ops import aten",
        "y = torch.ops.mkldnn._convolution_pointwise(x)",
        "aten = torch.ops.aten",
        "torch._dynamo.reset()",
        "module._forward_hooks.clear()",
        "norm._modules = {}",
        "getattr(graph_module, '_loader')",
        "setattr(state, '_metadata', None)",
    ],
)
def test_the_search_finds_what_it_should(line: str) -> None:
    assert list(_uses(ast.parse(line), own={"_mine"}))


@pytest.mark.parametrize(
    "line",
    [
        "import os\nos._exit(1)",
        "self._mine = thing._mine",
        "torch.ops.unitscope.tap(x)",
        "x.__class__",
        "getattr(a, 'b')",
    ],
)
def test_the_search_leaves_what_is_ours(line: str) -> None:
    assert not list(_uses(ast.parse(line), own={"_mine"}))
