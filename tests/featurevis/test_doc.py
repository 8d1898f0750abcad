"""The page on feature visualization: its code blocks run, and it shows the pictures that they make."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support import ROOT, synthetic_store

import query
from pipeline.config import parse_config
from pipeline.featurevis import objectives

sys.path.insert(0, str(ROOT / "docs"))
from run_blocks import blocks, run

TEXT = (ROOT / "docs" / "feature-visualization.md").read_text()
SHOWN = re.findall(r"\]\((pictures/[^)]+)\)", TEXT)


def _quick(code: str) -> str:
    """Return the same code with fewer steps, smaller canvases and a grid of fewer parts."""
    code = re.sub(r"steps=\d+", "steps=2, size=32", re.sub(r"--steps \d+", "", code)).replace(", cell=64", "")
    code = re.sub(r"size=32\)\nImage", "cell=16)\nImage", code).replace("grid=5", 'grid=2, input="canvas"')
    code = re.sub(r"--size (\S+)", "--size 32", code)
    return re.sub(r"(^unitscope render.*?)( --output)", r"\1 --steps 2 --quiet\2", code, flags=re.MULTILINE)


def test_every_block_runs_and_makes_the_pictures_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "docs" / "pictures").mkdir(parents=True)
    run(TEXT, _quick)
    made = {f"pictures/{path.name}" for path in (tmp_path / "docs" / "pictures").iterdir()}
    assert made == set(SHOWN)


def test_the_pictures_are_there_small_and_not_grey() -> None:
    there = {f"pictures/{path.name}" for path in (ROOT / "docs" / "pictures").iterdir()}
    assert there == set(SHOWN)
    assert sum((ROOT / "docs" / name).stat().st_size for name in SHOWN) < 1_000_000
    for name in SHOWN:
        assert np.asarray(Image.open(ROOT / "docs" / name).convert("L")).std() > 15, name


def test_its_sql_and_toml_are_true(tmp_path: Path) -> None:
    (sql,) = (code for language, code in blocks(TEXT) if language == "sql")
    (toml,) = (code for language, code in blocks(TEXT) if language == "toml")
    made = synthetic_store.build(tmp_path / "store")
    with query.open(made.root) as scope:
        assert scope.sql(sql).columns == ["layer", "channel", "kind", "value_vs_best_example", "rank_in_layer"]
    body = tomllib.loads(toml) | {"model": {"source": "timm:x"}, "dataset": {"source": "folder:x"}}
    assert parse_config(body, "the page").visualize.units_per_layer == 16


def test_it_names_every_objective() -> None:
    made = {name for name in objectives.__all__ if name[0].islower() or name in ("L1", "L2")}
    assert not [
        name for name in made - {"parse", "as_objective"} if f"`{name}" not in TEXT and f", `{name}" not in TEXT
    ]
