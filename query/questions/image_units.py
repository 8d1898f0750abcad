"""One image over many units, and which of them it excites most."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from query.questions.columns import nullable, unit_columns
from query.record.dense import Dense
from query.record.run_tables import Run, standardized
from store import layout
from store.codes import TAIL_MAX_P


@dataclass(frozen=True)
class ImageRow:
    """One image over M units. All arrays are [M].

    `units` int64 are unit indices. `value` and `mean` float32 are the spatial maximum and mean. `tail_p` float64 is the
    share of the n accepted images with at least this value. `y` and `x` int32 are the position of the maximum, -1 where
    the record does not keep it.
    """

    units: NDArray[np.int64]
    value: NDArray[np.float32]
    mean: NDArray[np.float32]
    tail_p: NDArray[np.float64]
    y: NDArray[np.int32]
    x: NDArray[np.int32]
    n: int

    def take(self, rows: NDArray[Any]) -> ImageRow:
        arrays = {f.name: getattr(self, f.name)[rows] for f in fields(self) if f.name != "n"}
        return ImageRow(**arrays, n=self.n)


def stored_row(dense: Dense, image_id: int, units: NDArray[np.int64], enough: int | None = None) -> ImageRow:
    """Read an accepted image of the dataset on these units (rising unit indices).

    value and tail_p are exact where the table `tail` has the unit. Elsewhere they are decoded: the mean of the values
    with the unit's code, and the exact share of images that reach the code. The mean is always decoded. If at least
    `enough` units have tail_p <= 0.01, only units in `tail` are returned: all others have a larger tail_p.
    """
    run = dense.run
    exact, value, tail_p, y, x = _tail_of_image(run, image_id)
    if len(units) < run.units:
        kept = np.isin(exact, units)
        exact, value, tail_p, y, x = exact[kept], value[kept], tail_p[kept], y[kept], x[kept]
    means = dense.image(image_id, "mean")
    if enough is not None and np.count_nonzero(tail_p <= TAIL_MAX_P) >= enough:
        return ImageRow(exact, value, dense.decode(exact, means[exact], "mean"), tail_p, y, x, run.n)
    maxima = dense.image(image_id, "max")[units]
    unknown = np.where(run.one_position[units], 0, -1).astype(np.int32)
    row = ImageRow(
        units,
        dense.decode(units, maxima, "max"),
        dense.decode(units, means[units], "mean"),
        dense.decode_tail(units, maxima),
        unknown,
        unknown.copy(),
        run.n,
    )
    rows = np.searchsorted(units, exact)
    row.value[rows], row.tail_p[rows], row.y[rows], row.x[rows] = value, tail_p, y, x
    return row


def ranked(dense: Dense, row: ImageRow, k: int, by: str) -> pd.DataFrame:
    """Return the first k units of a row. Columns: see the declaration of top_units.

    by "tail": tail_p rising, then z falling; "max": z falling; "mean": z of the spatial mean falling, which is then the
    column z. Ties are in unit order. A zero of a layer that is never negative does not count.
    """
    run = dense.run
    row = row.take(np.flatnonzero((row.value > 0) | run.signed[row.units]))
    z = _z_of_mean(dense, row) if by == "mean" else run.z(row.value, row.units)
    first = row.tail_p if by == "tail" else -z
    if k < len(first):  # sort only those that can be among the first k
        few = np.flatnonzero(first <= np.partition(first, k - 1)[k - 1])
        row, z, first = row.take(few), z[few], first[few]
    order = np.lexsort((row.units, -z, first))[:k]
    frame = as_frame(run, row.take(order), z[order])
    frame.insert(7, "rank", np.arange(1, len(order) + 1))
    return frame


def as_frame(run: Run, row: ImageRow, z: NDArray[np.float64]) -> pd.DataFrame:
    """Return a row as a frame. Columns: see the declaration of activations_of. y and x are <NA> where not known."""
    return pd.DataFrame(
        {
            **unit_columns(run, row.units),
            "value": row.value,
            "mean": row.mean,
            "tail_p": row.tail_p,
            "z": z,
            "y": nullable(row.y),
            "x": nullable(row.x),
            "n": row.n,
        }
    )


def _z_of_mean(dense: Dense, row: ImageRow) -> NDArray[np.float64]:
    """Return z of the spatial mean, from the moments of the decoded means."""
    mean, sd = dense.moments_of_means
    return standardized(row.mean, mean[row.units], sd[row.units])


_Tail = tuple[
    NDArray[np.int64], NDArray[np.float32], NDArray[np.float64], NDArray[np.int32], NDArray[np.int32]
]  # units in rising order, value, tail_p, y, x


def _tail_of_image(run: Run, image_id: int) -> _Tail:
    """Read an image's rows of `tail`."""
    lookup = run.recorded("tail_by_image", layout.tail_by_image(run.name, image_id // layout.BLOCK))
    table = lookup.rows(["layer", "channel", "value", "tail_p", "y", "x"], {"image_id": image_id})
    units = run.unit_indices(table)
    order = np.argsort(units)
    value, tail_p = (table[name].to_numpy()[order] for name in ("value", "tail_p"))
    y, x = (table[name].fill_null(-1).to_numpy()[order] for name in ("y", "x"))
    return units[order], value, tail_p, y, x
