"""What an image is to each layer."""

from __future__ import annotations

import numpy as np
import pandas as pd

from query.questions.image_units import ImageRow
from query.record.run_tables import Run
from store.codes import TAIL_MAX_P


def image_summary(run: Run, row: ImageRow) -> pd.DataFrame:
    """Return one row per layer. Columns: see the declaration. `row` must have all units, in unit order.

    active counts units above zero, and rare those whose value at most 1 % of the images reach; expected = units / 100
    is how many of a layer's units are that rare on average. channel and the columns after it are of the layer's first
    unit in the order of top_units.
    """
    z = run.z(row.value, row.units)
    counted = (row.value > 0) | run.signed[row.units]
    layer = run.layers_of(row.units)
    order = np.lexsort((row.units, -z, row.tail_p, ~counted, layer))
    present, first = np.unique(layer[order], return_index=True)
    top = order[first]
    sizes = np.array([run.layers[int(i)].channels for i in present], np.int64)
    known = counted[top]
    return pd.DataFrame(
        {
            "model": run.model,
            "layer": pd.Series([run.layers[int(i)].name for i in present], dtype="str"),
            "units": sizes,
            "active": np.bincount(layer, row.value > 0, len(run.layers)).astype(np.int64)[present],
            "rare": np.bincount(layer, counted & (row.tail_p <= TAIL_MAX_P), len(run.layers)).astype(np.int64)[present],
            "expected": sizes * TAIL_MAX_P,
            "channel": _known(row.units[top] - run.starts[present], known),
            "value": np.where(known, row.value[top], np.nan).astype(np.float32),
            "tail_p": np.where(known, row.tail_p[top], np.nan),
            "z": np.where(known, z[top], np.nan),
            "y": _known(row.y[top], known & (row.y[top] >= 0)),
            "x": _known(row.x[top], known & (row.x[top] >= 0)),
            "n": row.n,
        }
    )


def _known(values: np.ndarray, known: np.ndarray) -> pd.arrays.IntegerArray:
    """Return integers that are <NA> where not known."""
    return pd.arrays.IntegerArray(values.astype(np.int64), ~known)
