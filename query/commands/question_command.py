"""Make a click command from a declared question. Neither duckdb nor pandas is imported before a store is opened."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from query.questions.declarations import DATASET, MODEL
from query.questions.question import Parameter, Question
from store.unit_name import is_unit_name

if TYPE_CHECKING:
    from query.scope import Scope

F = TypeVar("F", bound=Callable[..., Any])

store_argument = click.argument("store", type=click.Path(path_type=Path))
format_option = click.option(
    "--format",
    "form",
    type=click.Choice(["table", "csv", "json"]),
    default="table",
    show_default=True,
    help="Output format.",
)
model_code_option = click.option(
    "--allow-model-code", is_flag=True, help="Let a store whose model is python:... import it, which runs its code."
)


def run_options(command: F) -> F:
    """Add the options that choose the output format and one of several runs."""
    decorated: F = format_option(_decorator(MODEL)(_decorator(DATASET)(command)))
    return decorated


def question_command(question: Question) -> click.Command:
    """Make the command that asks a question: its required parameters are arguments, the others are options.

    A command of its own takes STORE as its first argument. A subcommand of `ask` has it from there.
    """

    def answer(store: Path, form: str, allow_model_code: bool = False, **given: Any) -> None:
        values = {p.name: _value(p, given[p.name]) for p in question.parameters}
        with open_scope(store, allow_model_code) as scope:
            show(getattr(scope, question.name)(**values), form)

    of_run = [p for p in question.parameters if p in (MODEL, DATASET)]
    asked = [p for p in question.parameters if p not in of_run]
    decorators: list[Callable[[Any], Any]] = [click.pass_obj if question.command == "ask" else store_argument]
    decorators += [_decorator(p) for p in asked] + [format_option] + [_decorator(p) for p in of_run]
    if any(p.kind == "image" for p in question.parameters):
        decorators.append(model_code_option)
    command: Any = answer
    for decorator in reversed(decorators):
        command = decorator(command)
    return click.command(question.command_name, help=help_text(question), short_help=question.about)(command)


def help_text(question: Question, *more: Parameter) -> str:
    """Return a command's help: the sentence, each argument (`more` has further ones), the detail and the examples."""
    arguments = [f"{_metavar(p)}: {p.help}" for p in (*question.parameters, *more) if p.required]
    heading = "Examples:" if len(question.examples) > 1 else "Example:"
    examples = "\n".join(["\b", heading, *(f"  {line}" for line in question.examples)])
    return "\n\n".join([question.about, *arguments, question.detail, examples])


def names_unit(text: str) -> bool:
    """Return whether a text names a unit. A file on disk of that name is an image."""
    return is_unit_name(text) and not Path(text).is_file()


def open_scope(store: Path, model_code: bool = False) -> Scope:
    import query

    return query.open(store, model_code=model_code)


def show(frame: Any, form: str) -> None:
    """Print an answer."""
    from query.presentation import formats

    formats.emit(formats.frame_text(frame, form))


def _decorator(parameter: Parameter) -> Callable[[Any], Any]:
    """Return click's argument or option for a parameter."""
    if parameter.required:
        number = click.FLOAT if parameter.kind == "number" else None
        return click.argument(parameter.name, metavar=_metavar(parameter), type=number)
    name, default, text = parameter.name, parameter.default, parameter.help
    if parameter.kind == "layers":
        return click.option("--layer", name, multiple=True, metavar="GLOB", help=text)
    if parameter.kind == "class":
        return click.option("--class", name, metavar=_metavar(parameter), help=text)
    if parameter.kind == "flag":
        return click.option(f"--{name}", name, is_flag=True, help=text)
    if parameter.kind == "choice":
        kind = click.Choice(parameter.choices)
        return click.option(f"--{name}", name, type=kind, default=default, show_default=True, help=text)
    if parameter.kind == "count":
        at_least_one = click.IntRange(min=1)
        return click.option(f"-{name}", name, type=at_least_one, default=default, show_default=True, help=text)
    return click.option(f"--{name}", name, help=text)


def _metavar(parameter: Parameter) -> str:
    return parameter.metavar or parameter.name.upper()


def _value(parameter: Parameter, given: Any) -> Any:
    """Return what Scope's method takes for what click parsed."""
    if parameter.kind == "layers":
        return list(given) or None
    if parameter.kind == "images" and "," in given:
        return [name for name in given.split(",") if name]
    return given
