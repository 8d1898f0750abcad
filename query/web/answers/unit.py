"""One unit: what it looks for, what fires it, across its range, and what is like it."""

from __future__ import annotations

import math
import shlex
from typing import Any

import numpy as np

from query.questions.connections import inputs, outputs
from query.questions.distribution import distribution, images_between, quantile_images
from query.questions.similarity import similar_units
from query.questions.top_images import lowest_images, top_images
from query.questions.unit_column import examples
from query.record.dense import Dense
from query.record.run_tables import Layer
from query.record.unit import Unit
from query.web.answers import facts
from query.web.answers.panel import Answer, Lines, objects, panel, plain_rows, text
from store.codes import QUANTILE_IMAGES

NINE, RANGE, CLASSES, SIMILAR, CONNECTED, BETWEEN = 9, QUANTILE_IMAGES, 6, 8, 6, 24
_VISUALIZATIONS = (
    "kind", "direction", "repeat", "size", "steps", "objective", "value", "value_vs_best_example", "rank_in_layer",
    "beats_median",
)  # fmt: skip


def unit_page(dense: Dense, unit: Unit, low: float | None = None, high: float | None = None) -> Answer:
    """Return the page of a unit. With `low` and `high`, also the images whose values lie between."""
    run, layer = unit.run, unit.layer
    lines = Lines(run)
    state = facts.states(run, layer).get(unit.channel, "")
    before, after = facts.previous_and_next(unit.channel, layer.channels)
    feeding, fed = neighbours(dense, layer)
    panels = {
        "visualizations": _visualizations(unit, lines),
        "highest": _highest(dense, unit, lines),
        "quantiles": _quantiles(dense, unit, lines),
        "distribution": _distribution(dense, unit, lines),
        "classes": _classes(unit, lines),
        "similar": _similar(dense, unit, lines),
        "connected": _connected(unit, lines),
    }
    if layer.signed:
        panels["lowest"] = _lowest(unit, lines)
    if low is not None and high is not None and low <= high:
        panels["between"] = _between(dense, unit, low, high, lines)
    if state == "dead":  # what is left of a unit that tells no picture from another
        panels = {name: panels[name] for name in ("visualizations", "distribution", "connected")}
    return {
        "page": "unit",
        "most_between": BETWEEN,
        **facts.of_run(run),
        **facts.of_layer(layer),
        "channel": unit.channel,
        "unit": unit.name,
        "state": state,
        "render": _render_command(unit),
        "statistics": _statistics(unit),
        "previous": before,
        "next": after,
        "panels": panels,
        "fed_by": [one.name for one in feeding],
        "feeds": [one.name for one in fed],
        "boxes": _boxes(unit),
    }


def _render_command(unit: Unit) -> str:
    """Return the command that renders this unit."""
    model = unit.run.model_row
    weights = "" if model["weights"] == "DEFAULT" else f" --weights {shlex.quote(model['weights'])}"
    return f"unitscope render {shlex.quote(model['source'])} {shlex.quote(unit.name)}{weights}"


def _statistics(unit: Unit) -> Answer:
    table = unit.run.lookup(unit.run.only("units")).rows(
        ("mean", "variance", "minimum", "maximum", "fraction_active", "max_mean", "max_sd", "q50", "q90", "q99",
         "saturated", "selectivity", "top_class"),
        {"layer": unit.layer.name, "channel": unit.channel},
    )  # fmt: skip
    rows = plain_rows(table.to_pylist())
    if len(rows) != 1:
        raise unit.run.inconsistent(f"units has {len(rows)} rows of {unit.name}")
    label = next((c.label for c in unit.run.classes if c.index == rows[0]["top_class"]), None)
    return rows[0] | {"top_label": label}


def _boxes(unit: Unit) -> dict[str, dict[str, Any]]:
    """Return the rank and the receptive field of the maximum on each stored highest example, by image_id."""
    if not unit.layer.spatial:
        return {}
    return {
        str(row["image_id"]): {"rank": row["rank"], "box": [row[f"box_{end}"] for end in ("y0", "x0", "y1", "x1")]}
        for row in examples(unit, "highest", boxes=True).to_pylist()
    }


def _of_unit(unit: Unit, lines: Lines) -> str:
    return lines.where(f"layer = {text(unit.layer.name)}", f"channel = {unit.channel}")


def _visualizations(unit: Unit, lines: Lines) -> Answer:
    rows: list[Answer] = []
    if unit.run.has("visualizations"):
        table = unit.run.lookup(unit.run.only("visualizations")).rows(
            _VISUALIZATIONS, {"layer": unit.layer.name, "channel": unit.channel}
        )
        rows = plain_rows(table.to_pylist())
        rows.sort(key=lambda row: (row["kind"], row["direction"] != "positive", row["repeat"]))
    sql = (
        f"SELECT {', '.join(_VISUALIZATIONS)} FROM visualizations\n{_of_unit(unit, lines)}\n"
        "ORDER BY kind, direction DESC, repeat"
    )
    return panel(
        "What it looks for",
        "Pictures made by gradient ascent to excite this unit.",
        rows,
        sql,
        lines.call("unit", unit.name) + ".visualizations",
    )


def _highest(dense: Dense, unit: Unit, lines: Lines) -> Answer:
    where = "The glow shows where, the frame what its strongest position sees." if unit.layer.has_places else ""
    return panel(
        "What fires it",
        f"Its strongest photographs. {where}".strip(),
        objects(top_images(dense, unit, NINE, None, "max")),
        f"SELECT * FROM top_images({text(unit.name)}, {NINE}{lines.chosen})",
        lines.call("top_images", unit.name, NINE),
    )


def _lowest(unit: Unit, lines: Lines) -> Answer:
    return panel(
        "What it is against",
        "Photographs on which its least value is lowest; this layer can be negative.",
        objects(lowest_images(unit, RANGE, None)),
        f"SELECT * FROM lowest_images({text(unit.name)}, {RANGE}{lines.chosen})",
        lines.call("top_images", unit.name, RANGE, None, "max", True),
    )


def _quantiles(dense: Dense, unit: Unit, lines: Lines) -> Answer:
    k = min(RANGE, max(unit.run.n // 12, 1))  # of few photographs, fewer: rows should not repeat each other
    return panel(
        "Across its range",
        "Not only the extremes: photographs around quantiles of the unit's own values.",
        objects(quantile_images(dense, unit, k)),
        f"SELECT * FROM quantile_images({text(unit.name)}, {k}{lines.chosen})",
        lines.call("quantile_images", unit.name, k),
    )


def _distribution(dense: Dense, unit: Unit, lines: Lines) -> Answer:
    return panel(
        "Distribution",
        f"Its largest value on each of {unit.run.n:,} photographs. A bar shows its photographs; "
        "heights are square roots of their number.",
        objects(distribution(dense, unit)),
        f"SELECT * FROM distribution({text(unit.name)}{lines.chosen})",
        lines.call("distribution", unit.name),
    )


def _between(dense: Dense, unit: Unit, low: float, high: float, lines: Lines) -> Answer:
    return panel(
        f"From {low:.4g} to {high:.4g}",
        "Photographs on which its value lies there, the highest first.",
        objects(images_between(dense, unit, low, high, BETWEEN)),
        f"SELECT * FROM images_between({text(unit.name)}, {low!r}, {high!r}, {BETWEEN}{lines.chosen})",
        lines.call("images_between", unit.name, low, high, BETWEEN),
    )


def _classes(unit: Unit, lines: Lines) -> Answer:
    run = unit.run
    rows: list[Answer] = []
    if run.has("class_stats"):
        table = run.lookup(run.only("class_stats")).rows(
            ("class_index", "auc", "mean_max"), {"layer": unit.layer.name, "channel": unit.channel}
        )
        index, mean = table["class_index"].to_numpy(), table["mean_max"].to_numpy()
        auc = table["auc"].to_numpy(zero_copy_only=False) if len(table) else np.zeros(0, np.float32)
        order = np.lexsort((index, -mean, -np.where(np.isnan(auc), -np.inf, auc)))[:CLASSES]
        labels = {c.index: c.label for c in run.classes}
        rows = [
            {"class_index": int(index[i]), "label": labels.get(int(index[i])), "mean_max": float(mean[i]),
             "auc": None if math.isnan(auc[i]) else float(auc[i])}
            for i in order.tolist()
        ]  # fmt: skip
    sql = (
        "SELECT s.class_index, c.label, s.mean_max, s.auc\n"
        "FROM class_stats s LEFT JOIN classes c USING (dataset, class_index)\n"
        f"{lines.where(f's.layer = {text(unit.layer.name)}', f's.channel = {unit.channel}', alias='s')}\n"
        f"ORDER BY s.auc DESC NULLS LAST, s.mean_max DESC, s.class_index LIMIT {CLASSES}"
    )
    known = any(row["auc"] is not None for row in rows)
    about = "Classes that it tells from the rest." if known else "AUC needs ten photographs of a class."
    return panel("Classes", about, rows, sql, lines.call("unit", unit.name) + ".classes")


def _similar(dense: Dense, unit: Unit, lines: Lines) -> Answer:
    return panel(
        "Units like it",
        f"They fire on the same photographs (correlation of their largest values over {unit.run.n:,}).",
        objects(similar_units(dense, unit, SIMILAR, None)),
        f"SELECT * FROM similar_units({text(unit.name)}, {SIMILAR}{lines.chosen})",
        lines.call("similar_units", unit.name, SIMILAR),
    )


def _connected(unit: Unit, lines: Lines) -> Answer:
    """Return the units that feed this one most strongly, and those that it feeds."""
    known = unit.run.has("connections")
    sides = (("feeds it", inputs), ("it feeds", outputs)) if known else ()
    rows = [{"side": side, **row} for side, ask in sides for row in objects(ask(unit, CONNECTED))]
    parts = [
        f"SELECT {text(side)} AS side, * FROM {ask.__name__}({text(unit.name)}, {CONNECTED}{lines.chosen})"
        for side, ask in sides
    ]
    return panel(
        "Before and after it",
        "What feeds it and what it feeds, by the weights between them times how much the feeding unit varies. Minus: "
        "it holds the other down.",
        rows,
        "\nUNION ALL\n".join(parts) or f"SELECT source_layer, source_channel FROM connections\n{_of_unit(unit, lines)}",
        lines.call("inputs", unit.name, CONNECTED),
    ) | {"known": known}


def neighbours(dense: Dense, layer: Layer) -> tuple[list[Layer], list[Layer]]:
    """Return the layers that feed a layer, and those that it feeds, in order of execution."""
    run = dense.run
    edges = run.edges
    feeding = [run.by_name[a] for a, b in edges if b == layer.name and a in run.by_name]
    fed = [run.by_name[b] for a, b in edges if a == layer.name and b in run.by_name]
    return sorted(feeding, key=lambda one: one.index), sorted(fed, key=lambda one: one.index)
