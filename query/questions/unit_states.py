"""Which units hardly tell images apart: dead, always on, or clipped."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from query.questions.columns import text, unit_columns
from query.record.run_tables import Run

ALWAYS_ON = 0.99  # share of positions above zero from which a unit counts as always on
CLIPPED = 0.5  # share of images with the maximum at the clip from which a unit counts as clipped


def unit_states(run: Run, units: NDArray[np.int64]) -> pd.DataFrame:
    """Return the units that hardly tell images apart, in unit order. Columns: see the declaration.

    state: `dead` (never above zero; constant, in a signed layer), `always on` (99 % of all positions above zero, in a
    layer that is never negative), `clipped` (its maximum is at the clip on half of the images or more).
    """
    s = run.statistics
    dead = s.dead[units] > 0
    on = ~dead & (s.fraction_active[units] >= ALWAYS_ON) & ~run.signed[units]
    clipped = ~dead & (s.saturated[units] >= CLIPPED)
    rows = np.flatnonzero(dead | on | clipped)
    state = np.select([dead, on], ["dead", "always on"], "clipped")[rows]
    units = units[rows]
    return pd.DataFrame(
        {
            **unit_columns(run, units),
            "state": text(state.tolist()),
            "fraction_active": s.fraction_active[units],
            "saturated": s.saturated[units],
            "maximum": s.maximum[units],
            "n": run.n,
        }
    )
