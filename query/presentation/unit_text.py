"""A unit's numbers in words, for contact sheets and the command line."""

from __future__ import annotations

import math
from typing import Any

from query.questions.unit_record import UnitRecord
from query.record.run_tables import Layer


def number(value: Any, digits: int = 4) -> str:
    """Format a number to some significant digits, or as a dash if it is not known."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    return f"{value:.{digits}g}"


def receptive_field(layer: Layer) -> str:
    if not layer.spatial:
        return "no place of the picture at each position"
    if layer.rf_global or layer.rf_size is None:
        return "the whole input"
    gated = ", gate ignored" if layer.rf_gated else ""
    return f"{layer.rf_size} px, stride {layer.rf_stride}{gated}"


def numbers(record: UnitRecord) -> list[tuple[str, str]]:
    """Return name and value of what the tables `units` and `layers` say about the unit."""
    s = record.statistics
    named = [
        ("mean", number(s["mean"])),
        ("standard deviation", number(math.sqrt(s["variance"]))),
        ("positions above zero", f"{100 * s['fraction_active']:.3g} %"),
        ("least and greatest", f"{number(s['minimum'])} to {number(s['maximum'])}"),
        ("maximum on an image", f"{number(s['max_mean'])}, sd {number(s['max_sd'])}"),
        ("its 50 and 90 % quantiles", f"{number(s['q50'])}   {number(s['q90'])}"),
        ("99, 99.9 and 99.99 %", f"{number(s['q99'])}   {number(s['q999'])}   {number(s['q9999'])}"),
    ]
    if s["saturated"] is not None:
        named.append((f"images at the clip, {number(record.layer.upper_bound)}", f"{100 * s['saturated']:.3g} %"))
    if s["selectivity"] is not None:
        named.append(("class selectivity", number(s["selectivity"], 3)))
    if s["top_class"] is not None:
        named.append(("top class", f"{record.top_label or ''} ({s['top_class']})".strip()))
    named.append(("dead", "yes" if s["dead"] else "no"))
    return named


def trust(row: dict[str, Any]) -> str:
    """Describe how far a feature visualization can be trusted.

    That is its value against the best example's, and the unit's rank among its layer's units on it.
    """
    ratio = row["value_vs_best_example"]
    against = "" if ratio is None or math.isnan(ratio) else f", {ratio:.2f} x best"
    return f"{row['kind']} {row['direction']}{against}, rank {row['rank_in_layer']} in layer"
