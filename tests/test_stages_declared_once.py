"""Stages are declared in `store/stages.py` and nowhere else."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import ROOT

from pipeline.stages import STAGES, stage_named
from store import stages

DECLARATION = ROOT / "store" / "stages.py"


def _listed(tree: ast.AST) -> Iterator[tuple[int, set[str]]]:
    """Yield the line of every literal collection, and the strings that stand in it directly."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.List, ast.Tuple, ast.Set)):
            elements = node.elts
        elif isinstance(node, ast.Dict):
            elements = [key for key in node.keys if key is not None]
        else:
            continue
        yield node.lineno, {e.value for e in elements if isinstance(e, ast.Constant) and isinstance(e.value, str)}


def _product() -> list[Path]:
    return [ROOT / "unitscope.py", *(p for root in ("pipeline", "store", "query") for p in (ROOT / root).rglob("*.py"))]


def test_no_other_place_lists_stages() -> None:
    for path in _product():
        if path != DECLARATION:
            for line, strings in _listed(ast.parse(path.read_text())):
                named = strings & set(stages.NAMES)
                assert len(named) < 2, f"{path.relative_to(ROOT)}:{line} lists the stages {sorted(named)}"


def test_every_declared_stage_is_computed_under_its_name_and_no_other_is() -> None:
    assert [stage.name for stage in STAGES] == list(stages.NAMES)
    known = {p.stem for p in (ROOT / "pipeline" / "stages").glob("*.py") if "\nSTAGE = Stage(" in p.read_text()}
    assert known == set(stages.NAMES)


@pytest.mark.parametrize("name", stages.NAMES)
def test_a_stage_comes_after_what_it_reads_and_its_partials_are_read_by_a_stage(name: str) -> None:
    spec = stages.spec_of(name)
    assert stage_named(name).spec is spec
    before = stages.NAMES[: stages.NAMES.index(name)]
    assert set(spec.after) <= set(before)
    if spec.consumer:
        consumer, last = spec.consumer
        assert stages.spec_of(consumer).last == last


def test_help_lists_every_stage() -> None:
    from click.testing import CliRunner

    from unitscope import cli

    said = CliRunner().invoke(cli, ["run", "--help"]).output
    assert all(f"{stage.name:10} {stage.about}" in said for stage in stages.STAGES)
