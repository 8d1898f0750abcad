"""The commands that ask a store. Neither torch nor duckdb is imported before a store is opened."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from store.errors import UsageError

if TYPE_CHECKING:
    from query.questions.unit_record import UnitRecord
    from query.scope import Scope
    from query.sql.database import Result

F = TypeVar("F", bound=Callable[..., Any])

_FORMATS = click.Choice(["table", "csv", "json"])
_store = click.argument("store", type=click.Path(path_type=Path))


def asking(command: F) -> F:
    """Options that every named question takes."""
    for option in (
        click.option("--dataset", help="Which dataset, where the store holds several."),
        click.option("--model", help="Which model, where the store holds several."),
        click.option("--format", "form", type=_FORMATS, default="table", show_default=True, help="Of the answer."),
    ):
        command = option(command)
    return command


model_code = click.option(
    "--allow-model-code", is_flag=True, help="Let a store whose model is python:... import it, which runs its code."
)


def open_scope(store: Path, code: bool = False) -> Scope:
    import query

    return query.open(store, model_code=code)


@click.command()
@_store
@click.argument("query")
@click.option(
    "--format",
    "form",
    type=click.Choice(["table", "csv", "json", "parquet"]),
    default="table",
    show_default=True,
    help="Of the answer; parquet needs --output.",
)
@click.option("--output", type=click.Path(path_type=Path), help="Write the answer to this file.")
@click.option(
    "--seconds", type=click.FloatRange(min=0.01), default=60, show_default=True, help="Stop a query after this."
)
def sql(store: Path, query: str, form: str, output: Path | None, seconds: float) -> None:
    """Ask a store in SQL: one SELECT over its views and macros, and nothing else.

    \b
    Views: models, datasets, classes, runs, layers, edges, images,
    rejected_images, predictions, units, top_examples, tail, class_stats,
    neighbors, visualizations, groups.
    Macros: top_units(image_id, k), top_images(unit, k), unit_row(unit),
    image_row(image_id), and a dozen more in docs/sql.md, each with model :=
    and dataset := as well.

    \b
    Examples:
      unitscope sql stores/demo "SELECT layer, count(*) FROM units WHERE dead GROUP BY layer"
      unitscope sql stores/demo "DESCRIBE units"
      unitscope sql stores/demo "FROM top_units(12, 5)" --format json
    """
    from query.presentation import formats as out

    if form == "parquet" and output is None:
        raise UsageError("--format parquet is no text: give --output FILE.parquet")
    destination = out.save_path(output, store) if output else None
    found = _isolated(store, query, seconds)
    if form == "parquet":
        import pyarrow.parquet as pq

        pq.write_table(found.arrow(), destination)
        return
    rows = [tuple(out.plain(value) for value in row) for row in found.fetchall()]
    text = out.rows_text(found.columns, rows, form)
    if destination is None:
        out.emit(text)
    else:
        destination.write_text(text, encoding="utf-8")


def _isolated(store: Path, query: str, seconds: float) -> Result:
    """In a process that can be killed; this one need not open the store."""
    from query.sql.database import Limits, Result
    from query.sql.worker import Isolated
    from store import publish

    publish.check_version(store)
    asked = Isolated(store, Limits(seconds=seconds))
    try:
        return Result(asked.table(query))
    finally:
        asked.close()


@click.command("top-units")
@_store
@click.argument("image")
@click.option("-k", type=click.IntRange(min=1), default=20, show_default=True, help="How many.")
@click.option(
    "--layer", "layers", multiple=True, metavar="GLOB", help="Only units of matching layers; may be repeated."
)
@click.option(
    "--by",
    type=click.Choice(["tail", "max", "mean"]),
    default="tail",
    show_default=True,
    help="tail: rarest for the unit first; max, mean: most deviations above the unit's average.",
)
@asking
@model_code
def top_units(
    store: Path,
    image: str,
    k: int,
    layers: tuple[str, ...],
    by: str,
    form: str,
    model: str | None,
    dataset: str | None,
    allow_model_code: bool,
) -> None:
    """Which units fire most on this image?

    IMAGE is an image_id (all digits), a path in the dataset, or a picture file on disk, on which the model then runs.
    tail_p is the share of the n images that reach the value; y and x are the place of the maximum in the layer's map,
    empty where the store does not keep it.

    \b
    Examples:
      unitscope top-units stores/demo 12 -k 5
      unitscope top-units stores/demo holiday/beach.jpg --layer 'blocks.5.*'
    """
    with open_scope(store, allow_model_code) as scope:
        show(scope.top_units(image, k, list(layers) or None, by, model, dataset), form)


@click.command("top-images")
@_store
@click.argument("unit")
@click.option("-k", type=click.IntRange(min=1), default=20, show_default=True, help="How many.")
@click.option("--class", "label", metavar="INDEX|SYNSET|LABEL", help="Only images of this class.")
@click.option(
    "--by", type=click.Choice(["max", "mean"]), default="max", show_default=True, help="Strongest place, or average."
)
@click.option("--lowest", is_flag=True, help="The lowest instead; for layers that can be negative.")
@asking
def top_images(
    store: Path,
    unit: str,
    k: int,
    label: str | None,
    by: str,
    lowest: bool,
    form: str,
    model: str | None,
    dataset: str | None,
) -> None:
    """Which images fire this unit most?

    UNIT is LAYER:CHANNEL, or MODEL/LAYER:CHANNEL where a store holds several models.

    \b
    Examples:
      unitscope top-images stores/demo blocks.3.1.bn1:17
      unitscope top-images stores/demo blocks.3.1.bn1:17 --class lighthouse -k 5 --format json
    """
    with open_scope(store) as scope:
        show(scope.top_images(unit, k, label, by, lowest, model, dataset), form)


@click.command()
@_store
@click.argument("what", metavar="UNIT|IMAGE")
@click.option("-k", type=click.IntRange(min=1), default=10, show_default=True, help="How many.")
@click.option(
    "--layer", help="For a unit: search layers that match, not its own. For an image: the layer to compare in (needed)."
)
@asking
@model_code
def similar(
    store: Path,
    what: str,
    k: int,
    layer: str | None,
    form: str,
    model: str | None,
    dataset: str | None,
    allow_model_code: bool,
) -> None:
    """Units like a unit, or images like an image.

    Units: by the correlation of their maxima over images. Images: by the cosine of their z over the units of --layer.

    \b
    Examples:
      unitscope similar stores/demo blocks.3.1.bn1:17
      unitscope similar stores/demo 12 --layer blocks.5.2.bn1
    """
    from query.resolve import UNIT

    with open_scope(store, allow_model_code) as scope:
        if UNIT.fullmatch(what) and not Path(what).is_file():
            show(scope.similar_units(what, k, layer, model, dataset), form)
        elif layer is None:
            raise UsageError(f"similar {what}: images are compared within a layer: give --layer LAYER")
        else:
            show(scope.similar_images(what, layer, k, model, dataset), form)


@click.command()
@_store
@click.argument("unit")
@click.option(
    "--save", type=click.Path(path_type=Path), metavar="FILE.png", help="Draw the contact sheet to this file."
)
@asking
def unit(store: Path, unit: str, save: Path | None, form: str, model: str | None, dataset: str | None) -> None:
    """Everything known about one unit, with a contact sheet.

    \b
    Example:
      unitscope unit stores/demo blocks.3.1.bn1:17 --save unit.png
    """
    from query.presentation import formats as out

    picture = out.save_path(save, store) if save else None
    if picture and picture.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        raise UsageError(f"--save {picture}: give a name that ends with .png, .jpg or .webp")
    with open_scope(store) as scope:
        out.emit(_record_text(scope.unit(unit, model, dataset), form))
        if picture:
            scope.contact_sheet(unit, model, dataset).save(picture)
            click.echo(f"saved {picture}", err=True)


def show(frame: Any, form: str) -> None:
    from query.presentation import formats as out

    out.emit(out.frame_text(frame, form))


def _record_text(record: UnitRecord, form: str) -> str:
    from query.presentation import formats as out
    from query.presentation.unit_text import numbers, receptive_field

    layer = record.layer
    frames = {
        "highest": record.highest, "lowest": record.lowest, "classes": record.classes, "neighbors": record.neighbors,
        "visualizations": record.visualizations,
    }  # fmt: skip
    known = {name: frame for name, frame in frames.items() if frame is not None and len(frame)}
    if form == "json":
        body: dict[str, Any] = {
            "model": record.model, "dataset": record.dataset, "layer": layer.name, "channel": record.channel,
            "n": record.n, "top_label": record.top_label, "statistics": out.plain(record.statistics),
        }  # fmt: skip
        for name, frame in frames.items():
            body[name] = [] if frame is None else out.frame_objects(frame)
        return json.dumps(body, ensure_ascii=False, indent=1) + "\n"
    if form == "csv":
        return out.rows_text(list(record.statistics), [tuple(out.plain(list(record.statistics.values())))], "csv")
    title = (
        f"{record.model}/{record.unit} on {record.dataset}, {record.n:,} images\n"
        f"{layer.op}, {layer.channels:,} channels, map {layer.height} x {layer.width}, sees {receptive_field(layer)}\n"
    )
    facts = "".join(f"{name:28}{value}\n" for name, value in numbers(record))
    return (
        title + "\n" + facts + "".join(f"\n{name}\n{out.frame_text(frame, 'table')}" for name, frame in known.items())
    )


COMMANDS: dict[str, click.Command] = {
    "sql": sql, "top-units": top_units, "top-images": top_images, "similar": similar, "unit": unit,
}  # fmt: skip
