"""The docs and the schema say the same."""

from __future__ import annotations

import pytest
from click.testing import CliRunner
from support import ROOT

import unitscope
from store import schema

DOC = (ROOT / "docs" / "store.md").read_text()


@pytest.mark.parametrize("table", schema.TABLES, ids=lambda t: t.name)
def test_every_column_is_explained(table: schema.Table) -> None:
    section = DOC.partition(f"### `{table.name}`\n")[2].partition("\n###")[0]
    rows = [line for line in section.splitlines() if line.startswith("| `")]
    assert [row.split("`")[1] for row in rows] == list(table.columns)
    for field, row in zip(table.fields, rows, strict=True):
        assert row.endswith(f"| {field.about} |")


@pytest.mark.parametrize("name", list(unitscope.COMMANDS))
def test_every_command_has_help_with_an_example(name: str) -> None:
    found = CliRunner().invoke(unitscope.cli, [name, "--help"])
    assert found.exit_code == 0
    assert f"unitscope {name}" in found.output.partition("Example")[2], "an example to copy"


def test_the_list_of_commands_is_complete() -> None:
    listed = CliRunner().invoke(unitscope.cli, ["--help"]).output
    for name, (_, about) in unitscope.COMMANDS.items():
        assert name in listed
        assert about.split(".")[0].split(",")[0] in listed
