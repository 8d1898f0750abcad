"""`unitscope ask`: the named questions that have no command of their own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from query.commands.cli import asking, model_code, open_scope, show

_k = click.option("-k", type=click.IntRange(min=1), default=20, show_default=True, help="How many.")
_layers = click.option(
    "--layer", "layers", multiple=True, metavar="GLOB", help="Only units of matching layers; may be repeated."
)


@click.group("ask", subcommand_metavar="NAME ...")
@click.argument("store", type=click.Path(path_type=Path))
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


def _question(name: str, *options: Callable[[Any], Any]) -> Callable[[Any], click.Command]:
    """A subcommand that every answer's options are added to."""

    def made(function: Any) -> click.Command:
        for option in (asking, *reversed(options)):
            function = option(function)
        return ask.command(name)(click.pass_obj(function))

    return made


@_question(
    "both",
    click.argument("a"),
    click.argument("b"),
    _k,
    click.option("--without", is_flag=True, help="A high and B not: zero, or below its median image."),
)
def both(store: Path, a: str, b: str, k: int, without: bool, form: str, **run: str | None) -> None:
    """Images on which units A and B are both high, or A without B.

    \b
    Example:
      unitscope ask stores/demo both blocks.5.2.bn1:3 blocks.5.2.bn1:7 --without -k 5
    """
    with open_scope(store) as scope:
        show(scope.both(a, b, without, k, **run), form)


@_question("units-for-class", click.argument("label", metavar="CLASS"), _k, _layers)
def units_for_class(store: Path, label: str, k: int, layers: tuple[str, ...], form: str, **run: str | None) -> None:
    """Units that tell a class from all other images: by area under ROC, then deviations.

    \b
    Example:
      unitscope ask stores/demo units-for-class dalmatian -k 5
    """
    with open_scope(store) as scope:
        show(scope.units_for_class(label, k, list(layers) or None, **run), form)


@_question("class-selectivity", click.option("-k", type=click.IntRange(min=1), help="How many; all without."), _layers)
def class_selectivity(store: Path, k: int | None, layers: tuple[str, ...], form: str, **run: str | None) -> None:
    """How selective every unit is for its best class, the most selective first.

    \b
    Example:
      unitscope ask stores/demo class-selectivity -k 10 --layer 'blocks.5.*'
    """
    with open_scope(store) as scope:
        show(scope.class_selectivity(k, list(layers) or None, **run), form)


@_question("separating-units", click.argument("a"), click.argument("b"), _k, _layers)
def separating_units(
    store: Path, a: str, b: str, k: int, layers: tuple[str, ...], form: str, **run: str | None
) -> None:
    """Units that best tell A from B: two classes, or two sets of images as comma-separated image_ids or paths.

    auc near 1: high on A; near 0: high on B.

    \b
    Examples:
      unitscope ask stores/demo separating-units dalmatian lighthouse
      unitscope ask stores/demo separating-units 3,7,11 0,1,2
    """
    with open_scope(store) as scope:
        show(scope.separating_units(_set(a), _set(b), k, list(layers) or None, **run), form)


def _set(text: str) -> str | list[str]:
    """A class, or images where commas say that there are several."""
    return [part for part in text.split(",") if part] if "," in text else text


@ask.command("compare")
@click.argument("model_a")
@click.argument("model_b")
@_k
@_layers
@click.option("--dataset", help="Which dataset, where the store holds several.")
@click.option(
    "--format", "form", type=click.Choice(["table", "csv", "json"]), default="table", show_default=True,
    help="Of the answer.",
)  # fmt: skip
@click.pass_obj
def compare(
    store: Path, model_a: str, model_b: str, k: int, layers: tuple[str, ...], dataset: str | None, form: str
) -> None:
    """Which units differ between two models, or two checkpoints, on the same images; the most changed first.

    With the same layers each unit stands beside itself, otherwise beside the one of MODEL_B that goes with it best.

    \b
    Example:
      unitscope ask stores/demo compare before after --layer 'layer4.*'
    """
    with open_scope(store) as scope:
        show(scope.compare(model_a, model_b, k, list(layers) or None, dataset), form)


@_question("polysemantic-units", _k, _layers)
def polysemantic_units(store: Path, k: int, layers: tuple[str, ...], form: str, **run: str | None) -> None:
    """Units whose strongest images are of several classes that are unlike each other.

    \b
    Example:
      unitscope ask stores/demo polysemantic-units -k 10
    """
    with open_scope(store) as scope:
        show(scope.polysemantic_units(k, list(layers) or None, **run), form)


@_question("unit-states", _layers)
def unit_states(store: Path, layers: tuple[str, ...], form: str, **run: str | None) -> None:
    """Units that are dead, always on, or clipped on most images.

    \b
    Example:
      unitscope ask stores/demo unit-states --format csv
    """
    with open_scope(store) as scope:
        show(scope.unit_states(list(layers) or None, **run), form)


@_question("image-summary", click.argument("image"), model_code)
def image_summary(store: Path, image: str, allow_model_code: bool, form: str, **run: str | None) -> None:
    """An image layer by layer: how many units are active, how many unusually so, and the first of each layer.

    IMAGE is an image_id, a path in the dataset, or a picture file on disk, on which the model then runs.

    \b
    Examples:
      unitscope ask stores/demo image-summary 12
      unitscope ask stores/demo image-summary holiday/beach.jpg
    """
    with open_scope(store, allow_model_code) as scope:
        show(scope.image_summary(image, **run), form)


@_question("activations", click.argument("what", metavar="UNIT|IMAGE"), model_code)
def activations(store: Path, what: str, allow_model_code: bool, form: str, **run: str | None) -> None:
    """The dense record: one unit over all images, or one image over all units.

    \b
    Examples:
      unitscope ask stores/demo activations blocks.5.2.bn1:3 --format csv
      unitscope ask stores/demo activations 12 --format csv
    """
    from query.resolve import UNIT

    with open_scope(store, allow_model_code) as scope:
        if UNIT.fullmatch(what) and not Path(what).is_file():
            show(scope.activations(what, **run), form)
        else:
            show(scope.activations_of(what, **run), form)


COMMANDS: dict[str, click.Command] = {"ask": ask}
