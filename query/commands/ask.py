"""`unitscope ask`: the declared questions that have no command of their own."""

from __future__ import annotations

from pathlib import Path

import click

from query.commands.question_command import (
    help_text,
    model_code_option,
    names_unit,
    open_scope,
    question_command,
    run_options,
    show,
    store_argument,
)
from query.questions.declarations import BY_NAME, QUESTIONS


@click.group("ask", subcommand_metavar="NAME ...")
@store_argument
@click.pass_context
def ask(ctx: click.Context, store: Path) -> None:
    """Ask STORE one of the named questions below; `unitscope ask STORE NAME --help` explains each.

    Units are LAYER:CHANNEL, classes an index, a synset or a label. The other questions are commands themselves:
    top-units, top-images, similar, unit, sql.

    \b
    Examples:
      unitscope ask stores/demo both blocks.5.2.bn1:3 blocks.5.2.bn1:7
      unitscope ask stores/demo image-summary 12 --format csv
      unitscope ask stores/demo separating-units dalmatian lighthouse -k 10
    """
    ctx.obj = store


@click.argument("what", metavar="UNIT|IMAGE")
@run_options
@model_code_option
@click.pass_obj
def _activations(
    store: Path, what: str, form: str, model: str | None, dataset: str | None, allow_model_code: bool
) -> None:
    with open_scope(store, allow_model_code) as scope:
        answer = scope.activations if names_unit(what) else scope.activations_of
        show(answer(what, model=model, dataset=dataset), form)


for _question in QUESTIONS:
    if _question.command == "ask":
        ask.add_command(question_command(_question))

# This one also takes an image, so it replaces the command made from the declaration.
_declared = BY_NAME["activations"]
_image = BY_NAME["activations_of"].parameters[0]
ask.command("activations", help=help_text(_declared, _image), short_help=_declared.about)(_activations)

COMMANDS: dict[str, click.Command] = {"ask": ask}
