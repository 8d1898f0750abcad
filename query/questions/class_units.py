"""Which units tell a class from all other images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from query.questions.columns import unit_columns
from query.record.run_tables import DatasetClass, Run
from query.resolve import units_of_layers
from store import layout


def units_for_class(
    run: Run, of_class: DatasetClass, k: int | None, layers: str | Sequence[str] | None
) -> pd.DataFrame:
    """Return units by auc falling, then z falling, then unit order; all if k is None. Columns: see the declaration.

    auc says how well the unit's maximum tells the class from the rest; it is NaN, and comes last, for a class of fewer
    than 10 images. z = (class mean - max_mean) / max_sd.
    """
    path = layout.class_stats_by_class(run.name)
    table = run.recorded("class_stats_by_class", path).rows(
        ["layer", "channel", "auc", "mean_max"], {"class_index": of_class.index}
    )
    units = run.unit_indices(table)
    auc, mean_max = (table[name].to_numpy() for name in ("auc", "mean_max"))
    if layers is not None:
        kept = np.isin(units, units_of_layers(run, layers))
        units, auc, mean_max = units[kept], auc[kept], mean_max[kept]
    z = run.z(mean_max, units)
    order = np.lexsort((units, -z, np.where(np.isnan(auc), np.inf, -auc)))[:k]
    units = units[order]
    return pd.DataFrame(
        {
            **unit_columns(run, units),
            "rank": np.arange(1, len(units) + 1),
            "auc": auc[order],
            "mean_max": mean_max[order],
            "z": z[order],
            "selectivity": run.statistics.selectivity[units],
            "top_class": pd.Series(run.statistics.top_class[units]).astype("Int32"),
            "class_index": of_class.index,
            "label": of_class.label,
            "n": run.n,
        }
    )
