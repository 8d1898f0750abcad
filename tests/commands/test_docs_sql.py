"""docs/sql.md: its tables are what the schema and the declared questions say, and each worked question is asked."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import duckdb
import pytest
from click.testing import CliRunner
from support import ROOT

import query
from query.questions.declarations import QUESTIONS
from query.scope import Scope
from store import schema
from unitscope import cli

PAGE = ROOT / "docs" / "sql.md"
MACROS = [(question, macro) for question in QUESTIONS for macro in question.macros]


def _reference() -> ModuleType:
    """docs/make_sql_reference.py, which is a script beside the page and not in a package."""
    spec = importlib.util.spec_from_file_location("make_sql_reference", ROOT / "docs" / "make_sql_reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


reference = _reference()


def questions() -> list[tuple[str, str]]:
    """Title and SQL of each worked question."""
    worked = re.findall(r"^### (\d+\. .+?)\n.*?```sql\n(.*?)```", PAGE.read_text(), re.M | re.S)
    return [(title, text) for title, text in worked]


@pytest.fixture(scope="module")
def scope(demo_store: Path) -> Scope:
    return query.open(demo_store)


def test_the_reference_is_what_the_schema_and_the_declarations_say() -> None:
    assert reference.generated(PAGE.read_text()) == reference.reference()
    assert reference.rewritten(PAGE.read_text()) == PAGE.read_text()


def test_views_and_macros_have_the_columns_it_lists(scope: Scope) -> None:
    text = reference.reference()
    for table in schema.TABLES:
        section = text.partition(f"### `{table.name}`\n")[2].partition("\n##")[0]
        listed = re.findall(r"^\| `(\w+)` \| (\w+)", section, re.M)
        described = scope.sql(f"DESCRIBE {table.name}").fetchall()
        assert [(name, kind) for name, kind, *_ in described] == listed, table.name
    unit, model = "'blocks.5.2.bn1:3'", "'tf_efficientnet_lite0'"
    arguments = {
        "k": "3", "unit": unit, "a": unit, "b": "'blocks.5.2.bn1:7'", "class": "'dalmatian'", "image_id": "4",
        "class_a": "'dalmatian'", "class_b": "'jeep'", "layer": "'classifier'", "model_a": model, "model_b": model,
        "low": "1.0", "high": "2.5",
    }  # fmt: skip
    for question, macro in MACROS:
        given = dict(arguments, unit="'classifier:3'") if macro.name == "lowest_images" else arguments
        call = ", ".join(given[p] for p in macro.parameters if p not in macro.optional)
        assert scope.sql(f"FROM {macro.name}({call}) LIMIT 5").columns == list(question.columns), macro.name


def test_there_are_twenty_questions() -> None:
    assert [int(title.partition(".")[0]) for title, _ in questions()] == list(range(1, len(questions()) + 1))
    assert len(questions()) >= 20


@pytest.mark.parametrize(("title", "text"), questions(), ids=[title for title, _ in questions()])
def test_each_question_is_answered(scope: Scope, title: str, text: str) -> None:
    answer = scope.sql(text)
    assert answer.columns
    assert len(answer) or "none in the demo" in title


def test_the_questions_that_need_no_macro_work_in_duckdb_alone(demo_store: Path) -> None:
    names = [macro.name for _, macro in MACROS]
    plain = [text for _, text in questions() if not any(f"{name}(" in text for name in names)]
    assert len(plain) >= 10
    with duckdb.connect() as connection, query.open(demo_store) as scope:
        connection.execute(CliRunner().invoke(cli, ["views", str(demo_store)]).output)
        for text in plain:
            assert connection.execute(text).fetchall() == scope.sql(text).fetchall()
