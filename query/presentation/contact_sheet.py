"""A picture of everything known about a unit: feature visualizations, example images and numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from PIL import Image

from query.presentation import drawing
from query.presentation.cropping import from_dataset
from query.presentation.drawing import FAINT, Canvas
from query.presentation.unit_text import numbers, receptive_field, trust
from query.questions import unit_column
from query.questions.unit_record import UnitRecord, unit_record
from query.record import stored_pictures
from query.record.dense import Dense
from query.record.stored_pictures import Example
from query.record.unit import Unit

MARGIN, GAP, SIDE = 36, 16, 320
ACROSS = 5
TILE = 176
RIGHT = ACROSS * TILE + (ACROSS - 1) * GAP
WIDTH = 3 * MARGIN + SIDE + RIGHT
HEADER, HEADING, CAPTION, ROW, HISTOGRAM = 108, 30, 44, 25, 180


@dataclass(frozen=True)
class _Shown:
    """A titled block of example pictures, one tile per row."""

    title: str
    rows: pd.DataFrame
    tiles: list[Image.Image]

    @property
    def height(self) -> int:
        lines = -(-len(self.tiles) // ACROSS)
        return HEADING + lines * (TILE + CAPTION) + (lines - 1) * 4 + GAP


def contact_sheet(dense: Dense, unit: Unit) -> Image.Image:
    """Draw the contact sheet: an RGB picture, WIDTH pixels wide and as high as it needs to be."""
    record = unit_record(dense, unit)
    shown = [_examples(unit, record.highest, "highest", 2 * ACROSS, "Highest images")]
    if record.lowest is not None:
        shown.append(_examples(unit, record.lowest, "lowest", ACROSS, "Lowest images"))
    shown = [block for block in shown if block.tiles]
    rendered = _rendered(unit, record)
    facts = numbers(record)
    near = drawing.wrapped(_neighbors(record), 15, WIDTH - 2 * MARGIN)
    left = sum(SIDE + CAPTION for _ in rendered) + HEADING + ROW * len(facts)
    right = sum(block.height for block in shown) + HISTOGRAM
    body = max(left, right)
    canvas = Canvas.blank(WIDTH, HEADER + body + 2 * GAP + HEADING + 22 * len(near) + MARGIN)
    _header(canvas, record)
    _left(canvas, rendered, facts)
    _right(canvas, dense, unit, shown)
    y = HEADER + body + GAP
    canvas.rule(MARGIN, y, WIDTH - 2 * MARGIN)
    canvas.text(MARGIN, y + GAP, "Units that fire on the same images (correlation)", 15, FAINT)
    for row, line in enumerate(near):
        canvas.text(MARGIN, y + GAP + HEADING + 22 * row, line)
    return canvas.image


def _header(canvas: Canvas, record: UnitRecord) -> None:
    layer = record.layer
    canvas.text(MARGIN, MARGIN - 8, record.unit, 36, width=WIDTH - 2 * MARGIN)
    field = receptive_field(layer)
    words = (
        f"{record.model} on {record.dataset}, {record.n:,} images      {layer.op}, {layer.channels:,} channels, "
        f"map {layer.height} x {layer.width}, sees {field}"
    )
    canvas.text(MARGIN, MARGIN + 38, words, 16, FAINT, WIDTH - 2 * MARGIN)


def _left(canvas: Canvas, rendered: Sequence[tuple[str, Image.Image]], facts: Sequence[tuple[str, str]]) -> None:
    y = HEADER
    for words, image in rendered:
        canvas.image.paste(image, (MARGIN, y))
        canvas.text(MARGIN, y + SIDE + 8, words, 14, FAINT, SIDE)
        y += SIDE + CAPTION
    canvas.text(MARGIN, y, "Numbers", 18)
    y += HEADING
    for name, value in facts:
        canvas.text(MARGIN, y, name, 15, FAINT)
        taken = drawing.font(15).getlength(name) + GAP
        canvas.text(MARGIN + SIDE, y, value, 15, width=SIDE - taken, anchor="ra")
        canvas.rule(MARGIN, y + ROW - 5, SIDE)
        y += ROW


def _right(canvas: Canvas, dense: Dense, unit: Unit, shown: Sequence[_Shown]) -> None:
    x, y = 2 * MARGIN + SIDE, HEADER
    for block in shown:
        canvas.text(x, y, block.title, 18)
        for i, (tile, row) in enumerate(zip(block.tiles, block.rows.itertuples(), strict=True)):
            left = x + i % ACROSS * (TILE + GAP)
            top = y + HEADING + i // ACROSS * (TILE + CAPTION + 4)
            canvas.image.paste(tile, (left, top))
            canvas.text(left, top + TILE + 4, f"{row.value:.4g}", 15)
            label = row.label if isinstance(row.label, str) else str(row.path).rpartition("/")[2]
            canvas.text(left, top + TILE + 22, label, 13, FAINT, TILE)
        y += block.height
    canvas.text(x, y, "Maximum on each image", 18)
    canvas.text(x + RIGHT, y + 3, "number of images, log scale", 13, FAINT, anchor="ra")
    book = dense.book(unit.layer, "max")
    counts = book.counts[unit.channel]
    used = counts > 0
    area = (x, y + HEADING, RIGHT, HISTOGRAM - HEADING)
    if not used.any():
        raise unit.run.inconsistent(f"no image has a code of {unit.name}")
    drawing.histogram(canvas, area, book.means[unit.channel][used], counts[used])


def _examples(unit: Unit, rows: pd.DataFrame, direction: str, most: int, title: str) -> _Shown:
    rows = rows.head(most)
    ids = rows["image_id"].tolist()
    kept = stored_pictures.examples(unit, rows["image_id"].to_numpy(), maps=direction == "highest")
    kept = [one or _from_dataset(unit, image_id) for one, image_id in zip(kept, ids, strict=True)]
    stored = unit_column.examples(unit, direction, boxes=True).to_pylist()
    boxes = {r["image_id"]: (r["box_y0"], r["box_x0"], r["box_y1"], r["box_x1"]) for r in stored if unit.layer.spatial}
    tiles = [
        drawing.example_tile(example, TILE, boxes.get(image_id), unit.run.input_size)
        for example, image_id in zip(kept, ids, strict=True)
    ]
    return _Shown(title, rows, tiles)


def _from_dataset(unit: Unit, image_id: int) -> Example | None:
    """Return an example that the store does not keep, without its map, if the dataset's files are at hand."""
    image = from_dataset(unit.run, image_id)
    return Example(np.asarray(image), None) if image else None


def _rendered(unit: Unit, record: UnitRecord) -> list[tuple[str, Image.Image]]:
    """Return the first feature visualization of each direction, with a line on how far to trust it."""
    by_direction: dict[str, tuple[str, Image.Image]] = {}
    table = record.visualizations
    for row in ({str(key): value for key, value in row.items()} for row in table.to_dict("records")):
        if row["direction"] not in by_direction:
            pixels = stored_pictures.visualization(unit, row["kind"], row["direction"], row["repeat"])
            image = Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.LANCZOS)
            by_direction[row["direction"]] = (trust(row), image)
    return list(by_direction.values())


def _neighbors(record: UnitRecord) -> list[str]:
    near = record.neighbors
    named = zip(near["layer"], near["channel"], near["correlation"], strict=True)
    return [f"{layer}:{channel} ({correlation:.2f})" for layer, channel, correlation in named] or ["none"]
