"""Which units feed a unit, and which ones it feeds, by the weights between them (stage `connections`)."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyarrow as pa

from query.questions.columns import strings, unit_columns
from query.record.run_tables import Run
from query.record.unit import Unit

_COLUMNS = ("strength", "weight", "path")


def inputs(unit: Unit, k: int) -> pd.DataFrame:
    """Return the k units that feed a unit most strongly. Columns: see the declaration."""
    run = unit.run
    table = run.lookup(run.only("connections")).rows(
        ("source_layer", "source_channel", "rank", *_COLUMNS),
        {"layer": unit.layer.name, "channel": unit.channel},
    )
    table = table.take(np.argsort(table["rank"].to_numpy(), kind="stable")[:k])
    return _frame(run, table, "source_layer", "source_channel")


def outputs(unit: Unit, k: int) -> pd.DataFrame:
    """Return the k units that a unit feeds most strongly, among those that keep it. Columns: see the declaration."""
    run = unit.run
    table = run.rows(
        "connections", f"layer, channel, {', '.join(_COLUMNS)}", "source_layer = ? AND source_channel = ?",
        [unit.layer.name, unit.channel],
    )  # fmt: skip
    order = np.lexsort((run.unit_indices(table), -np.abs(table["strength"].to_numpy())))
    return _frame(run, table.take(order[:k]), "layer", "channel")


def _frame(run: Run, table: pa.Table, layer: str, channel: str) -> pd.DataFrame:
    units = run.unit_indices(pa.table({"layer": table[layer], "channel": table[channel]}))
    return pd.DataFrame(
        {
            **unit_columns(run, units),
            "rank": np.arange(1, len(units) + 1),
            "strength": table["strength"].to_numpy(),
            "weight": table["weight"].to_numpy(),
            "path": strings(table["path"].cast(pa.string())),
            "n": run.n,
        }
    )
