"""How a unit's maxima are distributed over the images, and which images lie where."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from query.questions.columns import nullable, ranked_images
from query.questions.unit_column import UnitColumn, column_of_codes
from query.record.codebook import Codes
from query.record.dense import Dense
from query.record.unit import Unit
from store.codes import CODES
from store.errors import UsageError

BINS = 48
QUANTILES = (0.99, 0.9, 0.5, 0.1)


def distribution(dense: Dense, unit: Unit) -> pd.DataFrame:
    """Return a histogram of BINS equal bins. Columns: see the declaration.

    Images are counted by the mean value of their code, so that only the codebook is read, not the unit's column. The
    last bin ends at the unit's maximum. A unit that never varies has one bin of width 0.
    """
    book = dense.book(unit.layer, "max")
    used = np.flatnonzero(book.counts[unit.channel])
    if not len(used):
        raise unit.run.inconsistent(f"no image has a code of {unit.name}")
    values, counts = book.means[unit.channel][used].astype(np.float64), book.counts[unit.channel][used]
    low, high = float(values.min()), float(max(values.max(), unit.run.statistics.maximum[unit.index]))
    edges = np.linspace(low, high, BINS + 1) if high > low else np.array([low, high])
    images = np.histogram(values, edges, weights=counts)[0] if high > low else np.array([counts.sum()])
    return pd.DataFrame(
        {
            "bin": np.arange(len(images)),
            "low": edges[:-1],
            "high": edges[1:],
            "images": images.astype(np.int64),
            "n": unit.run.n,
        }
    )


def images_between(dense: Dense, unit: Unit, low: float, high: float, k: int) -> pd.DataFrame:
    """Return the first k images whose value lies from `low` to `high`, by value falling. Columns: see the declaration.

    Values that the record does not keep exactly are those of their codes.
    """
    if not low <= high:
        raise UsageError(f"images between {low:g} and {high:g}: give the smaller value first")
    edges = dense.book(unit.layer, "max").edges[unit.channel]
    first, last = (max(int(np.searchsorted(edges, value, side="right")) - 1, 0) for value in (low, high))
    _, column = _with_codes(dense, unit, [(first, last)])
    column = column.take(np.flatnonzero((column.value >= np.float32(low)) & (column.value <= np.float32(high))))
    return _frame(unit, column.take(_falling(column)[:k]))


def quantile_images(dense: Dense, unit: Unit, k: int) -> pd.DataFrame:
    """Return k images around each of the QUANTILES of a unit's values. Columns: see the declaration.

    Images are in the order (value falling, mean falling, image_id), and the k in the middle of which the quantile lies
    are returned. Of images that share a code and are not kept exactly, those with the lowest ids come first.
    """
    reaching, n = dense.book(unit.layer, "max").reaching[unit.channel], unit.run.n  # reaching falls with the code
    k = min(k, n)
    starts = [min(max(round((1 - quantile) * (n - 1)) - k // 2, 0), n - k) for quantile in QUANTILES]
    ends = [(int(np.flatnonzero(reaching >= s + k)[-1]), int(np.flatnonzero(reaching > s)[-1])) for s in starts]
    code, column = _with_codes(dense, unit, ends)  # one read for all quantiles
    frames = []
    for quantile, start, (first, last) in zip(QUANTILES, starts, ends, strict=True):
        among = column.take(np.flatnonzero((code >= first) & (code <= last)))
        above = int(reaching[last + 1]) if last + 1 < len(reaching) else 0
        frame = _frame(unit, among.take(_falling(among)[start - above : start - above + k]))
        frame.insert(0, "quantile", quantile)
        frames.append(frame)
    return pd.concat(frames, ignore_index=True)


def _with_codes(dense: Dense, unit: Unit, ranges: Sequence[tuple[int, int]]) -> tuple[Codes, UnitColumn]:
    """Read the unit on the accepted images whose code lies in one of the ranges, both ends included.

    Returns the codes too.
    """
    code = dense.unit(unit.layer, unit.channel, "max")
    wanted = np.zeros(CODES, np.bool_)
    for first, last in ranges:
        wanted[first : last + 1] = True
    ids = np.flatnonzero(wanted[code] & unit.run.images.accepted)
    return code[ids], column_of_codes(dense, unit, ids, code[ids], slice(None))


def _falling(column: UnitColumn) -> NDArray[np.intp]:
    rank = np.where(column.rank > 0, column.rank, np.iinfo(np.int32).max)
    return np.lexsort((column.image_ids, rank, -column.mean, -column.value))


def _frame(unit: Unit, column: UnitColumn) -> pd.DataFrame:
    return ranked_images(
        unit.run,
        column.image_ids,
        value=column.value,
        mean=column.mean,
        tail_p=column.tail_p,
        y=nullable(column.y),
        x=nullable(column.x),
    )
