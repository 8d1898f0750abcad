"""torchvision and timm are imported where a model needs them: each brings in torch's compiler, a second of CPU time."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest
from support import ROOT

LATE = {"torchvision", "timm"}


def _imported_at_once(tree: ast.AST) -> Iterator[str]:
    """Modules that a file imports when it is imported itself."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module or ""
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        elif not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield from _imported_at_once(node)


@pytest.mark.parametrize("room", ["pipeline", "query", "store"])
def test_nothing_imports_them_at_once(room: str) -> None:
    files = sorted((ROOT / room).rglob("*.py"))
    assert files
    for path in files:
        roots = {name.partition(".")[0] for name in _imported_at_once(ast.parse(path.read_text()))}
        assert not roots & LATE, path


def test_the_search_finds_what_it_should() -> None:
    text = "try:\n    import timm.layers\nexcept ImportError: pass\nclass A:\n    from torchvision import ops\n"
    assert set(_imported_at_once(ast.parse(text))) == {"timm.layers", "torchvision"}
    assert not set(_imported_at_once(ast.parse("def f():\n    import timm\n")))
