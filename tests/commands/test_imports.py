"""Imports run one way, `query -> store <- pipeline`, and `--help` stays light."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from support import ROOT

HEAVY = {"torch", "torchvision", "timm"}
PRODUCT = ("pipeline", "store", "query")


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


def _modules() -> dict[str, set[str]]:
    """The modules that each module of the product imports anywhere: in functions and for types too."""

    def module_of(name: str, within: str) -> str:
        for module in (name, f"{name}.__init__", within):
            if (ROOT / module.replace(".", "/")).with_suffix(".py").exists():
                return module
        return f"{within}.__init__"

    graph: dict[str, set[str]] = {}
    for path in (path for root in PRODUCT for path in (ROOT / root).rglob("*.py")):
        targets = graph.setdefault(".".join(path.relative_to(ROOT).with_suffix("").parts), set())
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] in PRODUCT:
                targets |= {module_of(f"{node.module}.{alias.name}", node.module) for alias in node.names}
    return graph


def test_modules_form_no_circle() -> None:
    assert len(list(TopologicalSorter(_modules()).static_order())) > 150  # raises CycleError, which names the circle


def test_packages_form_no_circle_as_the_architecture_page_shows(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(r"^```python\n(.*?)^```$", (ROOT / "docs" / "architecture.md").read_text(), re.M | re.S)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip().endswith("packages, no circle")


def test_the_rooms_to_come_are_held_to_the_same_rules() -> None:
    """The page (`query/web`) and the Building Blocks (`pipeline/explain`) are among what the rules above look at."""
    for room, root in (("query/web", "query"), ("pipeline/explain", "pipeline")):
        looked_at = _roots(root)
        assert all(path in looked_at for path in (ROOT / room).rglob("*.py"))


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


HELPS = (
    ["--help"], ["sql", "--help"], ["run", "--help"], ["unit", "--help"], ["ask", "store", "both", "--help"],
    ["top-units", "--help"], ["status", "--help"], ["slurm", "--help"], ["plan", "--help"], ["verify", "--help"],
)  # fmt: skip


def test_help_and_import_unitscope_import_nothing_heavy() -> None:
    """All in one process: what any of them imported would still be there at the end."""
    code = (
        "import sys, unitscope\n"
        f"for words in {HELPS!r}:\n"
        "    sys.argv = ['unitscope', *words]\n"
        "    try:\n        unitscope.main()\n"
        "    except SystemExit as stop:\n        assert stop.code in (0, None), (words, stop.code)\n"
        "    loaded = {'torch', 'duckdb', 'pandas', 'pyarrow', 'h5py', 'numpy'} & set(sys.modules)\n"
        "    assert not loaded, (words, loaded)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Usage: ") == len(HELPS)


def test_listing_a_folder_of_pictures_imports_no_torch(tmp_path: Path) -> None:
    (tmp_path / "n02109961").mkdir()
    (tmp_path / "n02109961" / "a.jpg").write_bytes(b"")
    code = (
        "import sys\nfrom pipeline.data.sources import open_source\n"
        f"entry, = open_source('folder:{tmp_path}').entries\n"
        "assert entry.label.synset == 'n02109961' and entry.label.index == 248, entry\n"
        "assert 'torch' not in sys.modules and 'torchvision' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr


def test_unitscope_hands_on_what_people_type_first() -> None:
    import pipeline
    import query
    import unitscope
    from pipeline import featurevis

    assert unitscope.open is query.open
    assert unitscope.open_model is pipeline.open_model
    assert unitscope.layers is pipeline.layers
    assert unitscope.render is featurevis.render
    assert unitscope.featurevis is featurevis
    assert set(unitscope.__all__) - {"main"} <= set(dir(unitscope))


def test_the_distribution_owns_exactly_its_names() -> None:
    found = {p.parent.name for p in ROOT.glob("*/__init__.py")}
    assert found == {"pipeline", "store", "query"}
