"""Everything a store knows about one unit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd

from query.questions.similarity import similar_units
from query.questions.top_images import lowest_images, top_images
from query.record.dense import Dense
from query.record.run_tables import Layer
from query.record.unit import Unit

EXAMPLES, CLASSES, NEIGHBORS = 10, 5, 5


@dataclass(frozen=True)
class UnitRecord:
    """Everything a store knows about one unit.

    `statistics` is the unit's row of the table `units`, and `top_label` the label of the class with the highest mean
    maximum, None if no class has 10 images. `highest` and `lowest` are frames as top_images returns (`lowest` is None
    for a layer that is never negative), `neighbors` as similar_units does, `classes` the classes that the unit tells
    best, and `visualizations` rows of the view of that name.
    """

    model: str
    dataset: str
    unit: str
    channel: int
    n: int
    layer: Layer
    statistics: dict[str, Any]
    top_label: str | None
    highest: pd.DataFrame
    lowest: pd.DataFrame | None
    classes: pd.DataFrame
    neighbors: pd.DataFrame
    visualizations: pd.DataFrame


def unit_record(dense: Dense, unit: Unit) -> UnitRecord:
    run = unit.run
    key = [unit.layer.name, unit.channel]
    columns = (
        "mean, variance, minimum, maximum, fraction_active, max_mean, max_sd, q50, q90, q99, q999, q9999, saturated, "
        "selectivity, top_class, dead"
    )
    rows = run.rows("units", columns, "layer = ? AND channel = ?", key).to_pylist()
    if len(rows) != 1:
        raise run.inconsistent(f"units has {len(rows)} rows of {unit.name}")
    statistics = rows[0]
    classes = _classes(unit)
    return UnitRecord(
        model=run.model,
        dataset=run.dataset,
        unit=unit.name,
        channel=unit.channel,
        n=run.n,
        layer=unit.layer,
        statistics=statistics,
        top_label=_label(unit, statistics["top_class"]),
        highest=top_images(dense, unit, EXAMPLES, None, "max"),
        lowest=lowest_images(unit, EXAMPLES, None) if unit.layer.signed else None,
        classes=classes,
        neighbors=similar_units(dense, unit, NEIGHBORS, None),
        visualizations=_visualizations(unit),
    )


def _classes(unit: Unit) -> pd.DataFrame:
    """Return the classes that the unit tells best: class_index, label, auc, mean_max."""
    table = unit.run.database.table(
        f"""SELECT s.class_index, c.label, s.auc, s.mean_max
            FROM class_stats s LEFT JOIN classes c USING (dataset, class_index)
            WHERE s.model = ? AND s.dataset = ? AND s.layer = ? AND s.channel = ?
            ORDER BY s.auc DESC NULLS LAST, s.mean_max DESC, s.class_index LIMIT {CLASSES}""",
        [unit.run.model, unit.run.dataset, unit.layer.name, unit.channel],
    )
    frame: pd.DataFrame = table.to_pandas()
    return frame


def _visualizations(unit: Unit) -> pd.DataFrame:
    table = unit.run.database.table(
        """SELECT kind, direction, repeat, size, steps, value, value_vs_best_example, rank_in_layer, beats_median
           FROM visualizations WHERE model = ? AND dataset = ? AND layer = ? AND channel = ?
           ORDER BY kind, direction DESC, repeat""",
        [unit.run.model, unit.run.dataset, unit.layer.name, unit.channel],
    )
    frame: pd.DataFrame = table.to_pandas()
    return frame


def _label(unit: Unit, class_index: int | None) -> str | None:
    if class_index is None:
        return None
    labels = unit.run.rows("classes", "label", "class_index = ?", [class_index])["label"].to_pylist()
    return labels[0] if labels else None
