"""Which units prefer a class."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from .frames import text
from .names import DatasetClass, units_of_layers
from .run import Run


def units_for_class(
    run: Run, of_class: DatasetClass, k: int | None, layers: str | Sequence[str] | None
) -> pd.DataFrame:
    """model, layer, channel, rank, auc, mean_max, z, selectivity, top_class, class_index, label, n.

    By auc falling (how well the unit's maximum tells the class from the rest; NULL under 10 images, then last), then z
    = (class mean - max_mean) / max_sd falling, layer_index, channel. k=None: all units.
    """
    names = sorted({run.layer_of(int(place)).name for place in units_of_layers(run, layers)}) if layers else []
    where = f"AND c.layer IN ({', '.join('?' * len(names))})" if names else ""
    limit = "" if k is None else f"LIMIT {k}"
    table = run.database.table(
        f"""SELECT c.layer, c.channel, c.auc, c.mean_max, u.selectivity, u.top_class,
                   CASE WHEN u.max_sd > 0 THEN (c.mean_max - u.max_mean) / u.max_sd ELSE 0 END AS z
            FROM class_stats c JOIN units u USING (model, dataset, layer, channel)
                 JOIN layers l USING (model, dataset, layer)
            WHERE c.model = ? AND c.dataset = ? AND c.class_index = ? {where}
            ORDER BY c.auc DESC NULLS LAST, z DESC, l.layer_index, c.channel {limit}""",
        [run.model, run.dataset, of_class.index, *names],
    )
    rows = table.num_rows
    frame = pd.DataFrame({"model": text([run.model] * rows), "layer": text(table["layer"].to_pylist())})
    frame["channel"] = table["channel"].to_numpy()
    frame["rank"] = range(1, rows + 1)
    for name in ("auc", "mean_max", "z", "selectivity"):
        frame[name] = table[name].to_numpy()
    frame["top_class"] = pd.Series(table["top_class"].to_pylist(), dtype="Int32")
    frame["class_index"], frame["label"], frame["n"] = of_class.index, of_class.label, run.n
    return frame
