"""Which units are selective for a class."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from query.questions.columns import text, unit_columns
from query.record.run_tables import Run


def class_selectivity(run: Run, units: NDArray[np.int64], k: int | None) -> pd.DataFrame:
    """Return units by selectivity falling, then unit order; all of them if k is None. Columns: see the declaration.

    Units without a selectivity are left out: those of signed layers, dead ones, and all if fewer than two classes have
    10 images.
    """
    s = run.statistics
    units = units[~np.isnan(s.selectivity[units])]
    order = units[np.argsort(-s.selectivity[units], kind="stable")][:k]
    labels = {c.index: c.label for c in run.classes}
    top = s.top_class[order]
    return pd.DataFrame(
        {
            **unit_columns(run, order),
            "rank": np.arange(1, len(order) + 1),
            "selectivity": s.selectivity[order],
            "top_class": pd.Series(top).astype("Int32"),
            "label": text([labels.get(int(c)) if not np.isnan(c) else None for c in top]),
            "n": run.n,
        }
    )
