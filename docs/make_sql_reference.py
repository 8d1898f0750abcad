"""Rewrite the generated part of docs/sql.md, between its two marks, from the schema and the declared questions.

From the repository's root: python docs/make_sql_reference.py
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # run from a checkout, installed or not

from query.questions.declarations import QUESTIONS
from store import schema

PAGE = Path(__file__).parent / "sql.md"
BEGIN, END = "<!-- generated from here: python docs/make_sql_reference.py -->\n", "<!-- to here -->\n"
# What the views add to their tables, or change.
VIEWS = {
    "images": "One row per file of a dataset; `status` and `reason` include what a scan could not decode.",
    "rejected_images": "The images of all datasets that the index or a scan rejected.",
}
REJECTED = ("dataset", "image_id", "path", "reason")
KINDS = {
    "name": "VARCHAR", "text": "VARCHAR", "bool": "BOOLEAN", "int16": "SMALLINT", "int32": "INTEGER",
    "int64": "BIGINT", "float32": "FLOAT", "float64": "DOUBLE",
}  # fmt: skip


def reference() -> str:
    """Return the views with every column, and the macros with the columns of their answers, as Markdown."""
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
    for question in QUESTIONS:
        columns = ", ".join(f"`{column}`" for column in question.columns)
        lines += [f"| `{macro.name}({macro.signature})` | {columns} |" for macro in question.macros]
    return "\n".join(lines) + "\n"


def generated(page: str) -> str:
    """Return what stands between the marks."""
    return page.partition(BEGIN)[2].partition(END)[0]


def rewritten(page: str) -> str:
    """Return the page with its generated part made anew."""
    head, begin, rest = page.partition(BEGIN)
    if not begin or END not in rest:
        raise SystemExit(f"{PAGE}: the marks are missing: {BEGIN}{END}")
    return head + BEGIN + reference() + END + rest.partition(END)[2]


if __name__ == "__main__":
    PAGE.write_text(rewritten(PAGE.read_text()))
