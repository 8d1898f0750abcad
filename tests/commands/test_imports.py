"""Imports run one way, `query -> store <- pipeline`, and `--help` stays light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from support import ROOT

HEAVY = {"torch", "torchvision", "timm"}


def _imports(path: Path) -> set[str]:
    """Absolute module names imported anywhere in a file, TYPE_CHECKING blocks left out."""
    found: set[str] = set()
    tree = ast.parse(path.read_text())
    hidden = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in hidden:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module)
    return found


def _roots(package: str) -> dict[Path, set[str]]:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    return {path: {name.partition(".")[0] for name in _imports(path)} for path in files}


def test_store_imports_neither_side_nor_torch() -> None:
    for path, roots in _roots("store").items():
        assert not roots & ({"pipeline", "query"} | HEAVY), path


def test_pipeline_does_not_import_query() -> None:
    for path, roots in _roots("pipeline").items():
        assert not roots & {"query", "duckdb"}, path


def test_only_the_live_module_of_query_reaches_the_pipeline() -> None:
    for path, roots in _roots("query").items():
        if path.name != "live.py":
            assert not roots & ({"pipeline"} | HEAVY), path


@pytest.mark.parametrize("arguments", [["--help"], ["sql", "--help"], ["run", "--help"], ["unit", "--help"]])
def test_help_imports_neither_torch_nor_duckdb(arguments: list[str]) -> None:
    code = (
        "import sys, unitscope\n"
        f"sys.argv = ['unitscope', *{arguments!r}]\n"
        "try:\n    unitscope.main()\n"
        "except SystemExit as stop:\n    assert stop.code in (0, None), stop.code\n"
        "loaded = {'torch', 'duckdb', 'pandas', 'pyarrow', 'h5py'} & set(sys.modules)\n"
        "print('LOADED', sorted(loaded))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert "Usage" in done.stdout
    assert done.stdout.strip().endswith("LOADED []")


def test_the_distribution_owns_exactly_its_names() -> None:
    found = {p.parent.name for p in ROOT.glob("*/__init__.py")}
    assert found == {"pipeline", "store", "query"}
