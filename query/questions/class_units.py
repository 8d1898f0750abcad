"""Which units prefer a class."""

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
    """model, layer, channel, rank, auc, mean_max, z, selectivity, top_class, class_index, label, n.

    By auc falling (how well the unit's maximum tells the class from the rest; NULL under 10 images, then last), then z
    = (class mean - max_mean) / max_sd falling, layer_index, channel. k=None: all units.
    """
    path = layout.class_stats_by_class(run.name)
    table = run.recorded("class_stats_by_class", path).rows(
        ["layer", "channel", "auc", "mean_max"], {"class_index": of_class.index}
    )
    units = run.places(table)
    auc, mean_max = (table[name].to_numpy() for name in ("auc", "mean_max"))
    if layers is not None:
        here = np.isin(units, units_of_layers(run, layers))
        units, auc, mean_max = units[here], auc[here], mean_max[here]
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
