"""Images on which two units are high, or one without the other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from query.questions.columns import ranked_images
from query.questions.unit_column import examples, fires, rows_in, tail, with_tail_p
from query.record.dense import Dense
from query.record.unit import Unit
from store.codes import TAIL_MAX_P
from store.errors import UsageError


@dataclass(frozen=True)
class _Measured:
    """A unit, its record, and its rows of `tail`."""

    dense: Dense
    unit: Unit
    tail: pa.Table

    @property
    def rare(self) -> NDArray[np.int64]:
        """Images with tail_p <= 0.01, rising. `tail` has all of them."""
        ids: NDArray[np.int64] = self.tail["image_id"].to_numpy()[self.tail["tail_p"].to_numpy() <= TAIL_MAX_P]
        return np.sort(ids)


def both(dense_a: Dense, a: Unit, dense_b: Dense, b: Unit, k: int, without: bool) -> pd.DataFrame:
    """Return images on which both units are high: by the larger of the two tail_p, then their sum, then image_id.

    With `without`, images on which a is high and b is at zero or below its median image: by a's tail_p, then b's
    falling, then image_id. Only images that both runs accepted are listed. Images with tail_p <= 0.01 for both units,
    or for a, come before all others; if there are k of them, no other image is looked at.
    """
    if a.run.dataset != b.run.dataset:
        raise UsageError(f"{a.name} and {b.name} were measured on different datasets ({a.run.name}, {b.run.name})")
    pair = _Measured(dense_a, a, tail(a)), _Measured(dense_b, b, tail(b))
    accepted = a.run.images.accepted & b.run.images.accepted
    ids = pair[0].rare if without else np.intersect1d(pair[0].rare, pair[1].rare, assume_unique=True)
    frame = _together(*pair, ids[accepted[ids]], k, without)
    return frame if len(frame) == k else _together(*pair, np.flatnonzero(accepted), k, without)


def _together(a: _Measured, b: _Measured, ids: NDArray[np.int64], k: int, without: bool) -> pd.DataFrame:
    """Return the first k of these images (rising ids)."""
    (value_a, p), (value_b, q) = _values(a, ids), _values(b, ids)
    on_a, on_b = fires(a.unit, value_a), fires(b.unit, value_b)
    if without:
        kept, keys = on_a & (~on_b | (q > 0.5)), (ids, -q, p)
    else:
        kept, keys = on_a & on_b, (ids, p + q, np.maximum(p, q))
    rows = np.flatnonzero(kept)
    rows = rows[_lexsorted([key[rows] for key in keys], k)]
    return ranked_images(
        a.unit.run, ids[rows], value_a=value_a[rows], tail_p_a=p[rows], value_b=value_b[rows], tail_p_b=q[rows]
    )


def _lexsorted(keys: list[NDArray[Any]], k: int) -> NDArray[np.intp]:
    """Return the first k of np.lexsort(keys). Only rows that the last key allows among them are sorted."""
    few = np.arange(len(keys[-1]))
    if len(few) > 4 * k:
        few = np.flatnonzero(keys[-1] <= np.partition(keys[-1], k - 1)[k - 1])
    order: NDArray[np.intp] = few[np.lexsort([key[few] for key in keys])[:k]]
    return order


def _values(measured: _Measured, ids: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Return a unit's value and tail_p on accepted images (rising ids). If `tail` has all, no codes are read."""
    unit, exact = measured.unit, measured.tail
    of_tail, rows = rows_in(exact["image_id"].to_numpy(), ids)
    if len(rows) == len(ids):
        value, tail_p = np.empty(len(ids), np.float32), np.empty(len(ids))
    else:
        code = measured.dense.unit(unit.layer, unit.channel, "max")[ids]
        book = measured.dense.book(unit.layer, "max")
        value, tail_p = book.means[unit.channel][code], book.tail_p[unit.channel][code]
        if len(exact) < unit.run.lookup(unit.run.only("top_examples")).greatest("rank"):
            stored = with_tail_p(examples(unit, "highest"), unit.run.n)
            of_stored, stored_rows = rows_in(stored["image_id"].to_numpy(), ids)
            value[stored_rows], tail_p[stored_rows] = (stored[c].to_numpy()[of_stored] for c in ("value", "tail_p"))
    value[rows], tail_p[rows] = (exact[name].to_numpy()[of_tail] for name in ("value", "tail_p"))
    return value, tail_p
