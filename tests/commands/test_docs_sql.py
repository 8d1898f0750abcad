"""docs/sql.md: its tables are what the schema and the macros say, and each of its worked questions is asked.

`python tests/test_docs_sql.py` rewrites the generated part of the file, between its two marks.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import duckdb
import pytest
from support import ROOT

import query
from query.questions.macros import macros
from query.scope import Scope
from store import schema

PLACE = ROOT / "docs" / "sql.md"
BEGIN, END = "<!-- generated from here: python tests/test_docs_sql.py -->\n", "<!-- to here -->\n"
# What the views add to their tables, or change.
VIEWS = {
    "images": "One row a file of a dataset; `status` and `reason` include what a scan could not decode.",
    "rejected_images": "The images of all datasets that the index or a scan rejected.",
}
REJECTED = ("dataset", "image_id", "path", "reason")
ABOUT = {f.name: f.about for table in schema.TABLES for f in table.fields} | {"path": schema.IMAGES.fields[3].about}
KINDS = {
    "name": "VARCHAR", "text": "VARCHAR", "bool": "BOOLEAN", "int16": "SMALLINT", "int32": "INTEGER",
    "int64": "BIGINT", "float32": "FLOAT", "float64": "DOUBLE",
}  # fmt: skip


def reference(scope: Scope) -> str:
    """The views with every column and the macros with their answers, as Markdown."""
    lines = ["## Views\n"]
    for table in schema.TABLES:
        about = VIEWS.get(table.name, table.about[0].upper() + table.about[1:] + ".")
        lines += [f"### `{table.name}`\n", f"{about}\n", "| column | type | meaning |", "|---|---|---|"]
        fields = {f.name: (KINDS[f.kind], f.about + ("; may be NULL" if f.null else "")) for f in table.fields}
        if table.name == "rejected_images":
            of_images = {f.name: (KINDS[f.kind], f.about) for f in schema.IMAGES.fields}
            fields = {name: of_images[name] for name in REJECTED}
        lines += [f"| `{name}` | {kind} | {text} |" for name, (kind, text) in fields.items()]
        lines.append("")
    lines += ["## Macros\n", "| macro | columns |", "|---|---|"]
    lines += [f"| `{m.name}({m.signature})` | {', '.join(f'`{c}`' for c in m.columns)} |" for m in macros(scope)]
    return "\n".join(lines) + "\n"


def questions() -> list[tuple[str, str]]:
    """Title and SQL of each worked question."""
    found = re.findall(r"^### (\d+\. .+?)\n.*?```sql\n(.*?)```", PLACE.read_text(), re.M | re.S)
    return [(title, text) for title, text in found]


@pytest.fixture(scope="module")
def scope(demo_store: Path) -> Scope:
    return query.open(demo_store)


def test_the_reference_is_what_the_schema_says(scope: Scope) -> None:
    assert PLACE.read_text().partition(BEGIN)[2].partition(END)[0] == reference(scope)


def test_views_and_macros_have_the_columns_it_lists(scope: Scope) -> None:
    text = reference(scope)
    for table in schema.TABLES:
        section = text.partition(f"### `{table.name}`\n")[2].partition("\n##")[0]
        listed = re.findall(r"^\| `(\w+)` \| (\w+)", section, re.M)
        described = scope.sql(f"DESCRIBE {table.name}").fetchall()
        assert [(name, kind) for name, kind, *_ in described] == listed, table.name
    unit, model = "'blocks.5.2.bn1:3'", "'tf_efficientnet_lite0'"
    arguments = {
        "k": "3", "unit": unit, "a": unit, "b": "'blocks.5.2.bn1:7'", "class": "'dalmatian'", "image_id": "4",
        "class_a": "'dalmatian'", "class_b": "'jeep'", "layer": "'classifier'", "model_a": model, "model_b": model,
    }  # fmt: skip
    for macro in macros(scope):
        given = dict(arguments, unit="'classifier:3'") if macro.name == "lowest_images" else arguments
        call = ", ".join(given[p] for p in macro.parameters if p not in macro.optional)
        assert scope.sql(f"FROM {macro.name}({call}) LIMIT 5").columns == list(macro.columns), macro.name


def test_there_are_twenty_questions() -> None:
    assert [int(title.partition(".")[0]) for title, _ in questions()] == list(range(1, len(questions()) + 1))
    assert len(questions()) >= 20


@pytest.mark.parametrize(("title", "text"), questions(), ids=[title for title, _ in questions()])
def test_each_question_is_answered(scope: Scope, title: str, text: str) -> None:
    found = scope.sql(text)
    assert found.columns
    assert len(found) or "none in the demo" in title


def test_the_questions_that_need_no_macro_work_in_duckdb_alone(
    demo_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(demo_store)
    names = [m.name for m in macros(query.open(demo_store))]
    plain = [text for _, text in questions() if not any(f"{name}(" in text for name in names)]
    assert len(plain) >= 10
    with duckdb.connect() as connection, query.open(demo_store) as scope:
        connection.execute(Path("views.sql").read_text())
        for text in plain:
            assert connection.execute(text).fetchall() == scope.sql(text).fetchall()


if __name__ == "__main__":
    head, _, rest = PLACE.read_text().partition(BEGIN)
    with query.open(sys.argv[1]) as opened:
        PLACE.write_text(head + BEGIN + reference(opened) + END + rest.partition(END)[2])
