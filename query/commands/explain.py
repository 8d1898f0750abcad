"""`unitscope explain`: why the network said what it said about one picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from query.commands.question_command import model_code_option, open_scope, run_options, store_argument
from query.explanation.terms import BASELINES, METHODS


@click.command()
@store_argument
@click.argument("image")
@click.option("--target", metavar="CLASS", help="The class to explain: index, label or synset. Default: the likeliest.")
@click.option("--against", metavar="CLASS", help="The class to tell it from. Default: the likeliest of the others.")
@click.option("--alone", is_flag=True, help="Explain the target's logit alone, against no other class.")
@click.option("--layer", help="The layer to explain by. Default: the last one with a map.")
@click.option("--method", type=click.Choice(METHODS), default="integrated", show_default=True,
              help="How attributions are estimated: docs/explaining.md says when to trust each.")  # fmt: skip
@click.option("--baseline", type=click.Choice(BASELINES),
              help="What the layer is compared with. Default: each unit's mean; zero for gradient.")  # fmt: skip
@click.option("--groups", type=click.IntRange(min=0, max=8), default=6, show_default=True,
              help="How many groups of units to look for on the picture.")  # fmt: skip
@click.option("--render", type=click.IntRange(min=0), default=0, metavar="STEPS", show_default=True,
              help="Render the groups and the units shown in so many steps; 128 take a minute or two.")  # fmt: skip
@click.option(
    "-k",
    type=click.IntRange(min=1),
    default=5,
    show_default=True,
    help="How many units of each side to ablate and to print; the sheet shows four.",
)
@click.option("--save", type=click.Path(path_type=Path), metavar="FILE.png", help="Draw the sheet into this file.")
@run_options
@model_code_option
def explain(
    store: Path,
    image: str,
    target: str | None,
    against: str | None,
    alone: bool,
    layer: str | None,
    method: str,
    baseline: str | None,
    groups: int,
    render: int,
    k: int,
    save: Path | None,
    form: str,
    model: str | None,
    dataset: str | None,
    allow_model_code: bool,
) -> None:
    """Why the network says one class about IMAGE, and not another.

    The model runs on the picture, so torch and the weights must be at hand. Printed are the units of one layer that
    speak for the class and against it, with what each adds to the score (attribution, an estimate) and by how much the
    score falls without it (ablation, measured); groups of units that fire together; and what the numbers mean.
    --format csv prints all units of the layer and nothing else.

    \b
    Examples:
      unitscope explain stores/demo foolbox/data/imagenet_16_251.jpg --save why.png
      unitscope explain stores/demo 12 --target dalmatian --against 'English setter'
      unitscope explain stores/demo holiday/beach.jpg --layer blocks.4.2.bn3 --format json
    """
    from query.presentation import formats as out
    from store.errors import UsageError

    picture = out.save_path(save, store) if save else None
    if picture and picture.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        raise UsageError(f"--save {picture}: give a name that ends with .png, .jpg or .webp")
    if alone and against is not None:
        raise UsageError("--alone explains the target against no other class: leave --against out")
    with open_scope(store, allow_model_code) as scope:
        found = scope.explain(
            image, target, "" if alone else against, layer, method, baseline, groups, render, k,
            model=model, dataset=dataset,
        )  # fmt: skip
        units = found.units
        shown = units if 2 * k >= len(units) else units.iloc[[*range(k), *range(len(units) - k, len(units))]]
        frames = {"predictions": found.predictions, "units": shown, "groups": found.groups}
        if form == "json":
            body: dict[str, Any] = {"question": found.question, "layer": found.layer.name, "sentences": found.sentences}
            body |= {name: out.frame_objects(frame) for name, frame in frames.items()}
            body["positions"] = out.frame_objects(found.positions)
            out.emit(json.dumps(body, ensure_ascii=False, indent=1) + "\n")
        elif form == "csv":
            out.emit(out.frame_text(found.units, "csv"))
        else:
            text = "".join(f"\n{name}\n{out.frame_text(frame, 'table')}" for name, frame in frames.items())
            out.emit("\n".join(found.sentences) + "\n" + text)
        if picture:
            found.sheet().save(picture)
            click.echo(f"saved {picture}", err=True)


COMMANDS: dict[str, click.Command] = {"explain": explain}
