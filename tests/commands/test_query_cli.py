"""The commands of `query`: formats, one-line refusals, help that teaches, and imports that stay light."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pandas as pd
import pytest
from click.testing import CliRunner, Result
from PIL import Image
from support import synthetic_store
from support.synthetic_store import Synthetic

import query
from query.commands.ask import COMMANDS as ASK
from query.commands.cli import COMMANDS
from store.errors import UsageError


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Synthetic:
    return synthetic_store.build(tmp_path_factory.mktemp("cli") / "store")


def call(command: str, *arguments: object) -> Result:
    """Run a command, or with "ask NAME" a subcommand of `ask`, whose name comes after the store."""
    command, _, question = command.partition(" ")
    words = [str(a) for a in arguments]
    words[1:1] = [question] if question else []
    result = CliRunner().invoke((COMMANDS | ASK)[command], words, catch_exceptions=True)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


NAMED: list[tuple[str, tuple[object, ...], Any]] = [
    ("top-units", (7, "-k", 4), lambda s: s.top_units(7, 4)),
    ("top-units", (7, "--layer", "head", "--by", "max"), lambda s: s.top_units(7, layer="head", by="max")),
    ("top-images", ("head:1", "-k", 3), lambda s: s.top_images("head:1", 3)),
    (
        "top-images",
        ("head:1", "--class", "lighthouse", "--lowest"),
        lambda s: s.top_images("head:1", 20, 437, "max", True),
    ),
    ("similar", ("head:1",), lambda s: s.similar_units("head:1")),
    ("similar", ("head:1", "--layer", "stem.relu"), lambda s: s.similar_units("head:1", layer="stem.relu")),
    ("similar", (7, "--layer", "head", "-k", 5), lambda s: s.similar_images(7, "head", 5)),
    ("ask inputs", ("head:1", "-k", 3), lambda s: s.inputs("head:1", 3)),
    ("ask outputs", ("stem.relu:1",), lambda s: s.outputs("stem.relu:1")),
    ("ask both", ("head:1", "stem.relu:1", "-k", 3), lambda s: s.both("head:1", "stem.relu:1", k=3)),
    ("ask both", ("head:1", "stem.relu:1", "--without"), lambda s: s.both("head:1", "stem.relu:1", without=True)),
    ("ask units-for-class", ("437", "--layer", "head"), lambda s: s.units_for_class(437, layer="head")),
    ("ask class-selectivity", (), lambda s: s.class_selectivity()),
    ("ask separating-units", ("lighthouse", "134", "-k", 4), lambda s: s.separating_units(437, 134, 4)),
    ("ask separating-units", ("1,2,3", "7,"), lambda s: s.separating_units([1, 2, 3], [7])),
    (
        "ask compare",
        ("toy", "toy", "--layer", "head", "--layer", "stem.*"),
        lambda s: s.compare("toy", "toy", layer=["head", "stem.*"]),
    ),
    ("ask polysemantic-units", ("-k", 5), lambda s: s.polysemantic_units(5)),
    ("ask unit-states", ("--model", "toy"), lambda s: s.unit_states()),
    ("ask image-summary", (7,), lambda s: s.image_summary(7)),
    ("ask activations", ("head:1",), lambda s: s.activations("head:1")),
    ("ask activations", (7, "--dataset", "shapes"), lambda s: s.activations_of(7)),
    ("ask activations-of", (7, "--layer", "head"), lambda s: s.activations_of(7, "head")),
]


@pytest.mark.parametrize(("command", "arguments", "ask"), NAMED)
def test_named_questions_in_every_format(
    made: Synthetic, command: str, arguments: tuple[object, ...], ask: Any
) -> None:
    with query.open(made.root) as scope:
        frame = ask(scope)
    rows = json.loads(call(command, made.root, *arguments, "--format", "json").stdout)
    assert [list(row) for row in rows] == [list(frame.columns)] * len(frame)
    for name in frame.columns:
        wanted = [None if pd.isna(value) else value for value in frame[name].tolist()]
        assert [row[name] for row in rows] == wanted
    read = list(csv.reader(io.StringIO(call(command, made.root, *arguments, "--format", "csv").stdout)))
    assert read[0] == list(frame.columns)
    assert len(read) == len(frame) + 1
    lines = call(command, made.root, *arguments).stdout.splitlines()
    assert lines[0].split() == list(frame.columns)
    assert len(lines) == len(frame) + 2
    starts = [i for i in range(len(lines[1])) if lines[1][i] == "-" and (i == 0 or lines[1][i - 1] == " ")]
    assert all(line[i - 1 : i].strip() == "" for line in lines for i in starts[1:]), "columns must stay apart"


def test_sql_formats(made: Synthetic, tmp_path: Path) -> None:
    text = "SELECT layer, channel, max_mean, NULL AS nothing FROM units ORDER BY ALL LIMIT 3"
    rows = json.loads(call("sql", made.root, text, "--format", "json").stdout)
    with query.open(made.root) as scope:
        wanted = scope.sql(text)
        assert [tuple(row.values()) for row in rows] == wanted.fetchall()
    for form, read in (("csv", pd.read_csv), ("parquet", pd.read_parquet)):
        file = tmp_path / f"answer.{form}"
        assert call("sql", made.root, text, "--format", form, "--output", file).stdout == ""
        assert read(file)["channel"].tolist() == [row["channel"] for row in rows]
    assert "max_mean" in call("sql", made.root, text).stdout.splitlines()[0]


def test_unit(made: Synthetic, tmp_path: Path) -> None:
    file = tmp_path / "unit.png"
    text = call("unit", made.root, "block.0.add:1", "--save", file).stdout
    with Image.open(file) as sheet:
        assert sheet.width > 1000
    value = made.maxima("block.0.add")[made.ids, 1]
    assert f"{value.mean():.4g}, sd {value.std():.4g}" in text
    for section in ("highest", "lowest", "classes", "neighbors", "visualizations"):
        assert f"\n{section}\n" in text
    found = json.loads(call("unit", made.root, "block.0.add:1", "--format", "json").stdout)
    assert found["n"] == 58
    assert found["highest"][0]["value"] == value.max()
    assert found["statistics"]["max_mean"] == pytest.approx(value.mean())


@pytest.mark.parametrize(
    ("command", "arguments", "said"),
    [
        ("sql", ("SELECT 1", "--format", "parquet"), "give --output"),
        ("sql", ("SELECT 1", "--output", "{store}/x.csv"), "lies in the store"),
        ("sql", ("SELECT 1", "--output", "{store}/../nowhere/x.csv"), "there is no folder"),
        ("sql", ("DROP VIEW units",), "exactly one SELECT"),
        ("top-units", ("nothing.png",), "no file on disk"),
        ("top-images", ("head",), "expected LAYER:CHANNEL"),
        ("similar", ("7",), "give --layer"),
        ("unit", ("head:1", "--save", "{store}/../unit.doc"), "ends with .png"),
        ("unit", ("head:1", "--model", "tow"), "did you mean toy?"),
    ],
)
def test_refusals_are_one_line(made: Synthetic, command: str, arguments: tuple[str, ...], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        call(command, made.root, *(a.replace("{store}", str(made.root)) for a in arguments))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_polysemantic_units_are_none_where_no_unit_fires_for_a_class(tmp_path: Path) -> None:
    """With one stored example per unit, no class can have the two that it takes."""
    synthetic_store.build(tmp_path / "store", kept=1)
    assert call("ask polysemantic-units", tmp_path / "store", "--format", "json").stdout == "[]\n"
    header = call("ask polysemantic-units", tmp_path / "store").stdout.splitlines()[0]
    with query.open(tmp_path / "store") as scope:
        assert header.split() == list(scope.polysemantic_units().columns)
        assert scope.sql("FROM polysemantic_units(5)").fetchall() == []


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_help_teaches(command: str) -> None:
    text = call(command, "--help").stdout
    assert f"unitscope {command} stores/demo" in text
    assert all(option.help for option in COMMANDS[command].params if isinstance(option, click.Option))


def test_light_imports() -> None:
    """Neither --help nor opening a store brings in torch; --help not even duckdb or pandas."""
    code = (
        "import sys, query, query.commands.cli\n"
        "heavy = {'torch', 'duckdb', 'pandas', 'numpy', 'h5py', 'pyarrow', 'PIL'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "import query.scope, query.presentation.contact_sheet, query.live, query.presentation.formats\n"
        "assert not {'torch', 'pipeline'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
