"""A page that shows why a network said what it said about a picture: the map, the units for and against, the groups."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from query.explanation.facts import Facts
from query.presentation import drawing
from query.presentation.cropping import from_dataset
from query.presentation.drawing import FAINT, INK, Canvas, Color
from query.presentation.formats import frame_objects
from query.questions import unit_column
from query.record import stored_pictures
from query.record.stored_pictures import Example
from query.record.unit import Unit

MARGIN, GAP = 36, 16
PICTURE, TILE, SMALL = 300, 150, 72
ACROSS = 4  # units in a line: each has its visualization and a photograph side by side
WIDTH = 2 * MARGIN + ACROSS * (2 * TILE + 2) + (ACROSS - 1) * GAP
LINE, HEADING = 22, 34
MOST = 8  # groups
FOR: Color = (214, 73, 51)
AGAINST: Color = (42, 106, 180)


def explanation_sheet(explained: Facts) -> Image.Image:
    """Draw the sheet: RGB, WIDTH pixels wide and as high as it needs to be."""
    units = explained.units
    most = _each_side(explained)
    speaking = units[units["attribution"] > 0].head(most)
    opposed = units[units["attribution"] < 0].tail(most).iloc[::-1]
    said = [line for sentence in explained.sentences for line in _lines(sentence, 15, WIDTH - 2 * MARGIN)]
    groups = len(explained.values.groups.loadings)
    heights = (
        96, PICTURE + 40, LINE * len(said) + GAP, *(_height(len(rows)) for rows in (speaking, opposed)),
        HEADING + TILE + SMALL + 3 * LINE + GAP if groups else 0,
    )  # fmt: skip
    canvas = Canvas.blank(WIDTH, sum(heights) + MARGIN)
    y = 0
    _header(canvas, explained)
    y += heights[0]
    _pictures(canvas, explained, y)
    y += heights[1]
    for row, line in enumerate(said):
        canvas.text(MARGIN, y + row * LINE, line, 15)
    y += heights[2]
    target = explained.class_name(explained.values.target)
    against = explained.values.against
    other = "against it" if against is None else f"for {explained.class_name(against)}"
    _units(canvas, explained, y, f"Units that speak for {target}, by attribution", FOR, speaking)
    y += heights[3]
    _units(canvas, explained, y, f"Units that speak {other}, by attribution", AGAINST, opposed)
    y += heights[4]
    if groups:
        _groups(canvas, explained, y)
    return canvas.image


def _each_side(explained: Facts) -> int:
    """Return how many units to show on each side: a line of them, if so many were ablated."""
    return min(ACROSS, max(len(explained.values.ablations) // 2, 1))


def _height(units: int) -> int:
    return (HEADING + TILE + 3 * LINE + GAP) if units else HEADING + LINE


def _lines(sentence: str, size: int, width: float) -> list[str]:
    return drawing.wrapped(sentence.split(" "), size, width, " ")


def _header(canvas: Canvas, explained: Facts) -> None:
    run, layer = explained.dense.run, explained.layer
    canvas.text(MARGIN, MARGIN - 8, explained.title, 28, width=WIDTH - 2 * MARGIN)
    words = (
        f"{explained.image}    {run.model}, layer {layer.name}, {layer.channels:,} units, "
        f"map {layer.height} x {layer.width}"
    )
    canvas.text(MARGIN, MARGIN + 30, words, 15, FAINT, WIDTH - 2 * MARGIN)


def _pictures(canvas: Canvas, explained: Facts, y: int) -> None:
    picture = _square(Image.fromarray(explained.pixels), PICTURE)
    canvas.image.paste(picture, (MARGIN, y))
    canvas.text(MARGIN, y + PICTURE + 8, "as the network saw it", 14, FAINT)
    x = MARGIN + PICTURE + GAP
    if explained.layer.has_places:
        for tile, words in (
            (signed_map(picture, explained.values.by_position), "red: adds to the score, blue: takes from it"),
            (dictionary(explained, picture), "what fires most there, sized by how much"),
        ):
            canvas.image.paste(tile, (x, y))
            canvas.text(x, y + PICTURE + 8, words, 14, FAINT)
            x += PICTURE + GAP
    width = WIDTH - MARGIN - x
    canvas.text(x, y, "What the network says", 18)
    colors = {explained.values.target: FOR, explained.values.against: AGAINST}
    for place, row in enumerate(frame_objects(explained.predictions)):
        top = y + HEADING + place * 44
        color = colors.get(row["class_index"], drawing.LINE)
        canvas.text(x, top, row["label"], 15, width=width - 90)
        canvas.text(x + width, top, f"{row['probability']:.1%}", 15, FAINT, anchor="ra")
        canvas.draw.rectangle((x, top + 22, x + max(width * row["probability"], 1), top + 28), color)


def _units(canvas: Canvas, explained: Facts, y: int, title: str, color: Color, rows: pd.DataFrame) -> None:
    canvas.text(MARGIN, y, title, 18, color)
    if not len(rows):
        canvas.text(MARGIN, y + HEADING, "none in this layer", 15, FAINT)
        return
    for column, row in enumerate(frame_objects(rows)):
        unit = explained.unit(row["channel"])
        left, top = MARGIN + column * (2 * TILE + 2 + GAP), y + HEADING
        for side, tile in enumerate(_two_tiles(explained, unit)):
            canvas.image.paste(tile, (left + side * (TILE + 2), top))
        top += TILE + 6
        canvas.text(left, top, unit.name, 15, width=2 * TILE)
        canvas.text(
            left, top + LINE, f"attribution {row['attribution']:+.3g}, without: {row['ablation']:+.3g}", 14, INK
        )
        canvas.text(
            left, top + 2 * LINE, f"fires {row['value']:.3g}, as much on {row['tail_p']:.1%} of pictures", 14, FAINT
        )


def _groups(canvas: Canvas, explained: Facts, y: int) -> None:
    canvas.text(MARGIN, y, "Units that fire together here", 18)
    values = explained.values
    _, height, width = values.activations.shape
    picture = _square(Image.fromarray(explained.pixels), TILE)
    each = (WIDTH - 2 * MARGIN) // max(min(len(values.groups.loadings), MOST), 1)
    for index, (row, units) in enumerate(
        zip(frame_objects(explained.groups)[:MOST], explained.units_of_groups(3), strict=False)
    ):
        left, top = MARGIN + index * each, y + HEADING
        strength = values.groups.strength[:, index].reshape(height, width)
        canvas.image.paste(shown_where(picture, strength), (left, top))
        side = min(SMALL, (each - GAP) // 3)
        direction = explained.group_pictures.get(index)
        if direction is not None:
            grown = Image.fromarray(direction).resize((SMALL, SMALL), Image.Resampling.LANCZOS)
            canvas.image.paste(grown, (left, top + TILE + 4))
            side = min(SMALL, (each - GAP - SMALL) // 2)
        first = left if direction is None else left + SMALL + 2
        for place, channel in enumerate(units if direction is None else units[:2]):
            tile = small_tile(explained, channel, side)
            canvas.image.paste(tile, (first + place * (side + 2), top + TILE + 4))
        top += TILE + SMALL + 8
        canvas.text(left, top, f"{row['attribution']:+.3g}, without: {row['ablation']:+.3g}", 14, width=each - 4)
        canvas.text(left, top + LINE, "units " + ", ".join(map(str, units)), 13, FAINT, each - 4)


def _two_tiles(explained: Facts, unit: Unit) -> list[Image.Image]:
    """Return a unit's feature visualization and its strongest photograph, or two photographs if none was rendered."""
    rendered = visualization(explained, unit.channel)
    tiles = [] if rendered is None else [rendered.resize((TILE, TILE), Image.Resampling.LANCZOS)]
    examples = photographs(unit, explained.image_id, 2 - len(tiles))
    tiles += [drawing.example_tile(example, TILE, None, unit.run.input_size) for example in examples]
    return tiles + [drawing.example_tile(None, TILE, None, unit.run.input_size)] * (2 - len(tiles))


def visualization(explained: Facts, channel: int) -> Image.Image | None:
    """Return a unit's stored feature visualization, else one rendered for this sheet, or None if there is neither."""
    run, layer = explained.dense.run, explained.layer
    if run.has("visualizations"):
        rows = run.lookup(run.only("visualizations")).rows(
            ("kind", "direction", "repeat"), {"layer": layer.name, "channel": channel}
        )
        for row in rows.to_pylist():
            if row["direction"] == "positive":
                unit = explained.unit(channel)
                return Image.fromarray(stored_pictures.visualization(unit, row["kind"], "positive", row["repeat"]))
    rendered = explained.unit_pictures.get(channel)
    return None if rendered is None else Image.fromarray(rendered)


def photographs(unit: Unit, without: int | None, count: int) -> list[Example]:
    """Return the photographs that fire a unit most, with its activation; not the one that is explained."""
    if count < 1:
        return []
    ids = unit_column.examples(unit, "highest")["image_id"].to_numpy()[: count + 1]
    kept = stored_pictures.examples(unit, ids, maps=True)
    found: list[Example] = []
    for image_id, example in zip(ids.tolist(), kept, strict=True):
        if image_id == without or len(found) == count:
            continue
        image = None if example is not None else from_dataset(unit.run, image_id)
        if example is not None or image is not None:
            found.append(example or Example(np.asarray(image), None))
    return found


def small_tile(explained: Facts, channel: int, side: int) -> Image.Image:
    """Return a unit as one small picture: its visualization, or what it sees of its strongest photograph."""
    rendered = visualization(explained, channel)
    if rendered is None:
        examples = photographs(explained.unit(channel), explained.image_id, 1)
        if not examples:
            return Image.new("RGB", (side, side), drawing.EMPTY)
        rendered = strongest_part(examples[0])
    return rendered.resize((side, side), Image.Resampling.LANCZOS)


def strongest_part(example: Example) -> Image.Image:
    """Return the part of a photograph around the strongest position, half as wide and as high."""
    image = Image.fromarray(example.pixels)
    if example.heat is None or example.heat.size < 2:
        return image
    y, x = np.unravel_index(int(example.heat.argmax()), example.heat.shape)
    across, down = image.width // 2, image.height // 2
    left = int(np.clip((x + 0.5) / example.heat.shape[1] * image.width - across / 2, 0, image.width - across))
    top = int(np.clip((y + 0.5) / example.heat.shape[0] * image.height - down / 2, 0, image.height - down))
    return image.crop((left, top, left + across, top + down))


def dictionary(explained: Facts, picture: Image.Image) -> Image.Image:
    """Show each place of the picture by the unit that fires most there, sized by the length of the place's vector.

    A layer with more than 14 x 14 places is shown at its strongest place of each cell.
    """
    found = Image.new("RGB", picture.size, drawing.EMPTY)
    channel, strength = explained.strongest_units(14)
    rows, columns = channel.shape
    across, down = picture.width / columns, picture.height / rows
    tiles: dict[int, Image.Image] = {}
    for y, x in np.ndindex(rows, columns):
        side = round(min(across, down) * (0.25 + 0.75 * float(strength[y, x])))
        one = int(channel[y, x])
        if one not in tiles:
            tiles[one] = small_tile(explained, one, round(min(across, down)))
        place = (round((x + 0.5) * across - side / 2), round((y + 0.5) * down - side / 2))
        found.paste(tiles[one].resize((side, side), Image.Resampling.LANCZOS), place)
    return found


def signed_map(picture: Image.Image, values: NDArray[np.float32]) -> Image.Image:
    """Lay a map over a picture in grey: red where it is positive, blue where negative; the largest size is opaque."""
    size = float(np.abs(values).max()) or 1.0
    grown = Image.fromarray((values / size).astype(np.float32)).resize(picture.size, Image.Resampling.BICUBIC)
    share = np.clip(np.asarray(grown), -1, 1)[..., None]
    grey = np.asarray(picture.convert("L").convert("RGB"), np.float32) * 0.6 + 90
    color = np.where(share > 0, np.array(FOR, np.float32), np.array(AGAINST, np.float32))
    alpha = np.abs(share) ** 0.8 * 0.8
    return Image.fromarray((grey * (1 - alpha) + color * alpha).clip(0, 255).astype(np.uint8))


def shown_where(picture: Image.Image, strength: NDArray[np.float32]) -> Image.Image:
    """Fade a picture where a group is weak."""
    size = float(strength.max()) or 1.0
    grown = Image.fromarray((strength / size).astype(np.float32)).resize(picture.size, Image.Resampling.BICUBIC)
    alpha = 0.12 + 0.88 * np.clip(np.asarray(grown), 0, 1)[..., None] ** 0.7
    pale = np.array(drawing.EMPTY, np.float32)
    return Image.fromarray((np.asarray(picture, np.float32) * alpha + pale * (1 - alpha)).astype(np.uint8))


def _square(picture: Image.Image, side: int) -> Image.Image:
    return picture.resize((side, side), Image.Resampling.LANCZOS)
