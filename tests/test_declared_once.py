"""Every question is declared in query/questions/declarations.py and nowhere else; what is made from it agrees."""

from __future__ import annotations

import ast
import inspect
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pandas as pd
import pytest
from click.testing import CliRunner
from support import ROOT, synthetic_store

import query
import unitscope
from query.commands.ask import ask
from query.commands.cli import COMMANDS
from query.questions.declarations import QUESTIONS
from query.questions.question import REQUIRED, Macro, Question
from query.scope import Scope
from query.sql.database import Limits
from store.errors import UsageError

DECLARATIONS = ROOT / "query" / "questions" / "declarations.py"
MACROS = [(question, macro) for question in QUESTIONS for macro in question.macros]
NAMES = {question.name for question in QUESTIONS} | {macro.name for _, macro in MACROS}
# Dtypes of a frame's column by its SQL type. DOUBLE takes float32 too, which it holds exactly.
DTYPES = {
    "VARCHAR": ("str",), "INTEGER": ("int32", "int64", "Int32", "Int64"), "BIGINT": ("int32", "int64"),
    "FLOAT": ("float32",), "DOUBLE": ("float32", "float64"), "BOOLEAN": ("bool",),
}  # fmt: skip
each_question = pytest.mark.parametrize("question", QUESTIONS, ids=lambda q: q.name)
each_macro = pytest.mark.parametrize(("question", "macro"), MACROS, ids=[macro.name for _, macro in MACROS])


@pytest.fixture(scope="module")
def scope(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scope]:
    made = synthetic_store.build(tmp_path_factory.mktemp("declared") / "store")
    with query.open(made.root, limits=Limits(isolated=False)) as opened:
        yield opened


def values_of(question: Question) -> dict[str, Any]:
    """A value for each parameter that must be given."""
    by_kind = {
        "unit": "block.0.add:1", "image": 7, "images": "lighthouse", "class": "lighthouse", "layer": "head",
        "model": "toy", "number": 1.0,
    }  # fmt: skip
    return {p.name: by_kind[p.kind] for p in question.parameters if p.required}


def command_of(question: Question) -> click.Command:
    return ask.commands[question.command_name] if question.command == "ask" else COMMANDS[question.command]


def help_of(question: Question) -> str:
    words = ["ask", "stores/demo", question.command_name] if question.command == "ask" else [question.command]
    result = CliRunner().invoke(unitscope.cli, [*words, "--help"], terminal_width=200)
    assert result.exit_code == 0, result.output
    return " ".join(result.output.split())


@each_question
def test_the_method_has_the_declared_parameters(question: Question) -> None:
    signature = inspect.signature(getattr(Scope, question.name))
    method = [(p.name, p.default) for p in list(signature.parameters.values())[1:]]
    nothing = inspect.Parameter.empty
    assert method == [(p.name, nothing if p.default is REQUIRED else p.default) for p in question.parameters]


def test_every_method_that_answers_with_a_frame_is_declared() -> None:
    methods = inspect.getmembers(Scope, inspect.isfunction)
    asking = {name for name, method in methods if not name.startswith("_") and "return" in method.__annotations__}
    frames = {name for name in asking if getattr(Scope, name).__annotations__["return"] == "pd.DataFrame"}
    assert frames == {question.name for question in QUESTIONS}
    assert len(QUESTIONS) == len(frames)


@each_question
def test_the_method_returns_the_declared_columns(scope: Scope, question: Question) -> None:
    frame = getattr(scope, question.name)(**values_of(question))
    assert len(frame)
    assert list(frame.columns) == list(question.columns)
    for name, kind in question.columns.items():
        assert str(frame[name].dtype) in DTYPES[kind], name


@each_question
def test_a_choice_is_what_the_method_accepts(scope: Scope, question: Question) -> None:
    method, given = getattr(scope, question.name), values_of(question)
    for parameter in question.parameters:
        for choice in parameter.choices:
            assert len(method(**given, **{parameter.name: choice}))
        if parameter.choices:
            assert parameter.default in parameter.choices
            with pytest.raises(UsageError, match=f"expected one of {', '.join(parameter.choices)}$"):
                method(**given, **{parameter.name: "no such choice"})


@each_macro
def test_a_macro_asks_the_method(scope: Scope, question: Question, macro: Macro) -> None:
    declared = {p.name: p for p in question.parameters}
    assert {parameter for _, parameter in macro.parameters.values()} <= set(declared)
    assert set(macro.fixed) <= set(declared)
    assert set(macro.optional) <= set(macro.parameters)
    for name in macro.optional:
        assert declared[macro.parameters[name][1]].default is None, "what is left out is NULL"
    values = values_of(question) | {"label": "lighthouse", "k": 3}
    given = [name for name in macro.parameters if name not in macro.optional]
    keywords = {macro.parameters[name][1]: values[macro.parameters[name][1]] for name in given}
    call = f"FROM {macro.name}({', '.join(repr(value) for value in keywords.values())})"
    described = scope.sql(f"DESCRIBE {call}").fetchall()
    assert [(name, kind) for name, kind, *_ in described] == list(question.columns.items())
    answer, wanted = scope.sql(call).df(), getattr(scope, question.name)(**keywords, **macro.fixed)
    pd.testing.assert_frame_equal(answer, wanted.astype(answer.dtypes), check_dtype=False)


def test_names_are_unique() -> None:
    assert len({question.name for question in QUESTIONS}) == len(QUESTIONS)
    assert len({macro.name for _, macro in MACROS}) == len(MACROS)


def test_the_command_line_has_every_question() -> None:
    subcommands = {question.name.replace("_", "-") for question in QUESTIONS if question.command == "ask"}
    assert set(ask.commands) == subcommands
    for question in QUESTIONS:
        assert question.command in unitscope.COMMANDS
        assert question.command == "ask" or question.command in COMMANDS


@each_question
def test_a_command_takes_the_declared_parameters(question: Question) -> None:
    if question.command == "similar":  # written by hand: it chooses between two questions
        return
    parameters = {p.name: p for p in command_of(question).params}
    for declared in question.parameters:
        if question.name == "activations" and declared.required:  # UNIT or IMAGE
            assert parameters["what"].metavar == "UNIT|IMAGE"
            continue
        made = parameters[declared.name]
        assert isinstance(made, click.Argument if declared.required else click.Option)
        assert made.required == declared.required
        if isinstance(made, click.Option):
            assert made.help == declared.help
    extra = {"store", "what", "form", "allow_model_code"}
    assert set(parameters) - {p.name for p in question.parameters} <= extra
    assert ("allow_model_code" in parameters) == ("IMAGE" in str(help_of(question)))


@each_question
def test_help_has_the_sentence_the_detail_and_the_examples(question: Question) -> None:
    assert question.about.endswith((".", "?"))
    assert question.examples
    if question.command == "similar":
        text = help_of(question)
        assert all(example in text for example in question.examples)
        return
    text = help_of(question)
    arguments = [p.help for p in question.parameters if p.required]
    for said in (question.about, question.detail, *arguments, *question.examples):
        assert " ".join(said.split()) in text
    assert all(p.help for p in question.parameters)
    if question.command != "ask":
        assert unitscope.COMMANDS[question.command][1] == question.about


@each_question
def test_examples_are_commands_that_parse(question: Question) -> None:
    for example in question.examples:
        program, name, *words = shlex.split(example)
        assert (program, name) == ("unitscope", question.command)
        if name == "ask":
            assert words[1] == question.command_name
            words = words[2:]
        command_of(question).make_context(name, words)


def test_help_imports_nothing_heavy() -> None:
    for words in (["top-units"], ["similar"], ["ask", "x"], ["ask", "x", "both"], ["ask", "x", "activations"]):
        code = (
            "import sys, unitscope\n"
            f"sys.argv = ['unitscope', *{words!r}, '--help']\n"
            "try:\n    unitscope.main()\n"
            "except SystemExit as stop:\n    assert not stop.code, stop.code\n"
            "print('LOADED', sorted({'torch', 'duckdb', 'pandas', 'numpy', 'pyarrow', 'h5py'} & set(sys.modules)))\n"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
        assert done.stdout.strip().endswith("LOADED []"), words


def listed_in(tree: ast.AST, names: set[str]) -> Iterator[tuple[int, set[str]]]:
    """Line and names of each list, tuple, set or dict that has two or more of the names as string constants."""
    for node in ast.walk(tree):
        if isinstance(node, ast.List | ast.Tuple | ast.Set | ast.Dict):
            texts = {c.value for c in ast.walk(node) if isinstance(c, ast.Constant) and isinstance(c.value, str)}
            if len(texts & names) > 1:
                yield node.lineno, texts & names


def sources() -> list[Path]:
    files = [path for folder in ("pipeline", "store", "query") for path in (ROOT / folder).rglob("*.py")]
    return [*sorted(files), ROOT / "unitscope.py"]


def test_no_other_place_lists_questions() -> None:
    assert list(listed_in(ast.parse(DECLARATIONS.read_text()), NAMES)), "the scan sees the declarations"
    for path in sources():
        if path != DECLARATIONS:
            listed = list(listed_in(ast.parse(path.read_text()), NAMES))
            assert not listed, f"{path.relative_to(ROOT)} lists questions again: {listed}"


def test_a_second_list_would_be_seen() -> None:
    for text in ("x = ['both', 'compare']", "x = {'unit_row': 1, 'a': (2, 'image_row')}", "f(('both', 'unit_states'))"):
        assert list(listed_in(ast.parse(text), NAMES))
    for text in ("x = ['both', 'neither']", "f('both', 'compare')"):
        assert not list(listed_in(ast.parse(text), NAMES))
