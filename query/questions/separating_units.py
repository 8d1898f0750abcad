"""Which units tell two sets of images apart."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from query.questions.columns import unit_columns
from query.record.dense import Dense
from store.codes import CODES
from store.errors import UsageError

_ROWS = 256  # images whose codes are counted together


def separating_units(
    dense: Dense, a: NDArray[np.int64], b: NDArray[np.int64], units: NDArray[np.int64], k: int | None
) -> pd.DataFrame:
    """Return units by |auc - 0.5| falling, then |z| falling; all of `units` if k is None. Columns: see the declaration.

    a and b are ids of accepted images. auc is the share of pairs (image of a, image of b) in which the maximum on a's
    image has the higher code; equal codes count half. z is the difference of the decoded means in the unit's standard
    deviations.
    """
    if not len(a) or not len(b):
        raise UsageError("separating_units: each of the two sets needs an image that was accepted")
    run = dense.run
    counts_a, counts_b = (_histograms(dense, ids) for ids in (np.unique(a), np.unique(b)))
    n_a, n_b = len(np.unique(a)), len(np.unique(b))
    means = np.concatenate([book.means for book in dense.books("max")])
    mean_a, mean_b = ((counts * means).sum(1) / n for counts, n in ((counts_a, n_a), (counts_b, n_b)))
    below = np.cumsum(counts_b, axis=1) - counts_b / 2
    auc = (counts_a * below).sum(1) / (n_a * n_b)
    z = run.z(mean_a.astype(np.float32), np.arange(run.units)) - run.z(mean_b.astype(np.float32), np.arange(run.units))
    order = units[np.lexsort((units, -np.abs(z[units]), -np.abs(auc[units] - 0.5)))][:k]
    return pd.DataFrame(
        {
            **unit_columns(run, order),
            "rank": np.arange(1, len(order) + 1),
            "auc": auc[order],
            "mean_a": mean_a[order],
            "mean_b": mean_b[order],
            "z": z[order],
            "n_a": n_a,
            "n_b": n_b,
            "n": run.n,
        }
    )


def _histograms(dense: Dense, ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """Count how many of these images have each code, for every unit: int64 [U, 256]."""
    units = dense.run.units
    first = np.arange(units, dtype=np.int64) * CODES
    counts = np.zeros(units * CODES, np.int64)
    for start in range(0, len(ids), _ROWS):
        rows = np.stack([dense.image(int(image_id), "max") for image_id in ids[start : start + _ROWS]])
        counts += np.bincount((rows + first).ravel(), minlength=len(counts))
    return counts.reshape(units, CODES)
