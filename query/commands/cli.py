"""The commands that ask a store. Neither duckdb nor pandas is imported before a store is opened."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from query.commands.question_command import (
    model_code_option,
    names_unit,
    open_scope,
    question_command,
    run_options,
    show,
    store_argument,
)
from query.questions.declarations import QUESTIONS
from store.errors import UsageError

if TYPE_CHECKING:
    from query.questions.unit_record import UnitRecord
    from query.sql.database import Result


@click.command()
@store_argument
@click.argument("query")
@click.option(
    "--format",
    "form",
    type=click.Choice(["table", "csv", "json", "parquet"]),
    default="table",
    show_default=True,
    help="Output format; parquet needs --output.",
)
@click.option("--output", type=click.Path(path_type=Path), help="Write the answer to this file.")
@click.option(
    "--seconds",
    type=click.FloatRange(min=0.01),
    default=60,
    show_default=True,
    help="Stop the query after so many seconds.",
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
    answer = _ask_worker(store, query, seconds)
    if form == "parquet":
        import pyarrow.parquet as pq

        pq.write_table(answer.arrow(), destination)
        return
    rows = [tuple(out.plain(value) for value in row) for row in answer.fetchall()]
    text = out.rows_text(answer.columns, rows, form)
    if destination is None:
        out.emit(text)
    else:
        destination.write_text(text, encoding="utf-8")


def _ask_worker(store: Path, query: str, seconds: float) -> Result:
    """Ask in a child process, which can be killed. This process only checks the files that the query names."""
    from query.sql import catalog
    from query.sql.database import Limits, Result
    from query.sql.worker import SqlWorker

    files = catalog.read(store)
    files.intact.require(files.named_in(query))
    worker = SqlWorker(store, Limits(seconds=seconds))
    try:
        return Result(worker.table(query))
    finally:
        worker.close()


@click.command()
@store_argument
@click.argument("what", metavar="UNIT|IMAGE")
@click.option("-k", type=click.IntRange(min=1), default=10, show_default=True, help="How many.")
@click.option(
    "--layer",
    help="For a unit: search the layers that this glob matches, not its own. For an image: the layer to compare in "
    "(needed).",
)
@run_options
@model_code_option
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

    Units are compared by the correlation of their maxima over images, and images by the cosine of their z over the
    units of --layer. A file on disk whose name looks like a unit is an image.

    \b
    Examples:
      unitscope similar stores/demo blocks.3.1.bn1:17
      unitscope similar stores/demo 12 --layer blocks.5.2.bn1
    """
    with open_scope(store, allow_model_code) as scope:
        if names_unit(what):
            show(scope.similar_units(what, k, layer, model, dataset), form)
        elif layer is None:
            raise UsageError(f"similar {what}: images are compared within a layer: give --layer LAYER")
        else:
            show(scope.similar_images(what, layer, k, model, dataset), form)


@click.command()
@store_argument
@click.argument("unit")
@click.option(
    "--save", type=click.Path(path_type=Path), metavar="FILE.png", help="Draw the contact sheet into this file."
)
@run_options
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


# `similar` is written by hand because it chooses between two questions.
COMMANDS: dict[str, click.Command] = {
    "sql": sql,
    **{q.command: question_command(q) for q in QUESTIONS if q.command not in ("ask", "similar")},
    "similar": similar,
    "unit": unit,
}
