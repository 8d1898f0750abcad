"""One picture: what the network says of it, and which units of each layer fire unusually on it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from query.questions.image_units import ImageRow, as_frame, stored_row
from query.record.dense import Dense
from query.record.run_tables import Layer, Run
from query.web.answers import facts
from query.web.answers.panel import Answer, Lines, objects, panel, plain_rows, text
from store.codes import TAIL_MAX_P

EACH = 6  # units of each layer
WHOLE = 48  # units of the layer that was chosen
MEDIAN = 0.5  # the tail probability of the median picture
AT_PLACE = 24  # units at one place


def image_page(dense: Dense, image_id: int, chosen: Layer | None = None) -> Answer:
    """Return the page of a picture of the dataset. Of the layer that is chosen, more units are listed."""
    run, lines = dense.run, Lines(dense.run)
    facts_of_image = run.image_rows(np.array([image_id]), "path", "label", "class_index", "width", "height", "status")
    (image,) = plain_rows(facts_of_image.to_pylist())
    row = stored_row(dense, image_id, np.arange(run.units))
    before, after = _neighbours(run, image_id)
    return {
        "page": "image",
        **facts.of_run(run),
        "image_id": image_id,
        **image,
        "previous": before,
        "next": after,
        "chosen": chosen.name if chosen else None,
        "layers": summary(run, row),
        "panels": {
            "predictions": _predictions(run, image_id, lines),
            "units": _units(run, row, image_id, chosen, lines),
        },
    }


def dropped_page(dense: Dense, sha256: str, row: ImageRow, predictions: list[Answer], chosen: Layer | None) -> Answer:
    """Return the page of a picture that was dropped. `row` is on all units."""
    run = dense.run
    python = "scope.top_units('picture.jpg')"
    return {
        "page": "drop",
        **facts.of_run(run),
        "sha256": sha256,
        "chosen": chosen.name if chosen else None,
        "layers": summary(run, row),
        "panels": {
            "predictions": panel("What the network says", "Its five likeliest classes.", predictions),
            "units": panel(
                "What fires unusually on it",
                "The units of each layer with the smallest share of the dataset's pictures that fire them as much.",
                unusual(run, row, chosen),
                python=python,
            ),
        },
    }


def position(dense: Dense, layer: Layer, maps: NDArray[np.float32], across: float, down: float) -> Answer:
    """Return what the units of a layer do at one place of a picture.

    across, down: the place, as shares of the picture's width and height. maps: float32 [C, h, w]. Positions share the
    picture evenly, as they do where maps are laid over it.
    """
    y, x = (min(int(share * count), count - 1) for share, count in zip((down, across), maps.shape[1:], strict=True))
    values = maps[:, y, x]
    reached = dense.book(layer, "max").images_reaching(values)
    tail_p = (1 + reached) / (dense.run.n + 1)
    counted = np.flatnonzero((values > 0) | layer.signed)
    order = counted[np.lexsort((counted, -values[counted], tail_p[counted]))][:AT_PLACE]
    rows = [
        {"layer": layer.name, "channel": int(c), "value": float(values[c]), "tail_p": float(tail_p[c])} for c in order
    ]
    about = "Units by the share of pictures that fire them anywhere as much as this place does."
    found = panel(f"At this place, in {layer.name}", about, rows)
    return {"y": y, "x": x, "height": maps.shape[1], "width": maps.shape[2], "panel": found}


def _neighbours(run: Run, image_id: int) -> tuple[int | None, int | None]:
    """Return the accepted images before and after an image."""
    accepted = run.images.all
    place = int(np.searchsorted(accepted, image_id))
    before = int(accepted[place - 1]) if place > 0 else None
    after = int(accepted[place + 1]) if place + 1 < len(accepted) else None
    return before, after


def summary(run: Run, row: ImageRow) -> list[Answer]:
    """Return each layer, with how many of its units fire unusually, and how many usually do."""
    layer_of = run.layers_of(row.units)
    rare = _counts(run, row) & (row.tail_p <= TAIL_MAX_P)
    numbers = np.bincount(layer_of[rare], minlength=len(run.layers))
    return [
        {"layer": layer.name, "channels": layer.channels, "rare": int(numbers[layer.index]),
         "expected": layer.channels * TAIL_MAX_P, "spatial": layer.has_places}
        for layer in run.layers
    ]  # fmt: skip


def _counts(run: Run, row: ImageRow) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Return which values count: in a layer that is never negative, a zero does not."""
    return (row.value > 0) | run.signed[row.units]


def unusual(run: Run, row: ImageRow, chosen: Layer | None) -> list[Answer]:
    """Return the units of each layer that fire most unusually on a picture, layer by layer.

    Those that fire less than on the median picture are left out.
    """
    row = row.take(np.flatnonzero(_counts(run, row) & (row.tail_p <= MEDIAN)))
    z = run.z(row.value, row.units)
    layer_of = run.layers_of(row.units)
    order = np.lexsort((row.units, -z, row.tail_p, layer_of))
    starts = np.searchsorted(layer_of[order], np.arange(len(run.layers) + 1))
    kept = [
        order[starts[layer.index] : min(starts[layer.index] + _most(layer, chosen), starts[layer.index + 1])]
        for layer in run.layers
    ]
    rows = np.concatenate(kept)
    return objects(as_frame(run, row.take(rows), z[rows]))


def _most(layer: Layer, chosen: Layer | None) -> int:
    return WHOLE if chosen is not None and layer.name == chosen.name else EACH


def _predictions(run: Run, image_id: int, lines: Lines) -> Answer:
    rows: list[Answer] = []
    if run.has("predictions"):
        table = run.lookup(run.only("predictions")).rows(
            ("rank", "class_index", "label", "probability"), {"image_id": image_id}
        )
        rows = sorted(plain_rows(table.to_pylist()), key=lambda one: int(one["rank"]))
    sql = (
        "SELECT rank, class_index, label, probability FROM predictions\n"
        f"{lines.where(f'image_id = {image_id}')}\nORDER BY rank"
    )
    return panel("What the network says", "Its five likeliest classes.", rows, sql)


def _units(run: Run, row: ImageRow, image_id: int, chosen: Layer | None, lines: Lines) -> Answer:
    most = f"CASE WHEN r.layer = {text(chosen.name)} THEN {WHOLE} ELSE {EACH} END" if chosen else str(EACH)
    order = "r.tail_p, r.z DESC, r.channel"
    sql = (
        f"SELECT r.* FROM image_row({image_id}{lines.chosen}) r\n"
        f"JOIN layers l ON l.model = r.model AND l.layer = r.layer AND l.dataset = {text(run.dataset)}\n"
        f"WHERE (r.value > 0 OR l.signed) AND r.tail_p <= {MEDIAN}\n"
        f"QUALIFY row_number() OVER (PARTITION BY r.layer ORDER BY {order}) <= {most}\n"
        f"ORDER BY l.layer_index, {order}"
    )
    return panel(
        "What fires unusually on it",
        "The units of each layer with the smallest share of pictures that fire them at least as much.",
        unusual(run, row, chosen),
        sql,
        lines.call("top_units", image_id),
    )
