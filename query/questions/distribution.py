"""How a unit's maxima are distributed over the images, and which images lie where."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from query.questions.columns import nullable, ranked_images
from query.questions.unit_column import UnitColumn, column_of_codes
from query.record.dense import Dense
from query.record.unit import Unit
from store import codes
from store.errors import UsageError

BINS = 48


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
    code = dense.unit(unit.layer, unit.channel, "max")
    ids = np.flatnonzero((code >= first) & (code <= last) & unit.run.images.accepted)
    column = column_of_codes(dense, unit, ids, code[ids], slice(None))
    column = column.take(
        np.flatnonzero((column.value.astype(np.float64) >= low) & (column.value.astype(np.float64) <= high))
    )
    return _frame(unit, column.take(_falling(column)[:k]))


def quantile_images(dense: Dense, unit: Unit, k: int) -> pd.DataFrame:
    """Return k images around each quantile of a unit's values, by value falling. Columns: see the declaration.

    The quantiles are those of the run's config (`[examples] quantiles`), or codes.QUANTILES. Images are chosen by their
    codes, as `store.codes.around_quantiles` says.
    """
    accepted = unit.run.images.all
    code = dense.unit(unit.layer, unit.channel, "max")[accepted]
    quantiles = unit.run.quantiles or codes.QUANTILES
    chosen = codes.around_quantiles(code, quantiles, k)
    rows = np.unique(chosen)
    column = column_of_codes(dense, unit, accepted[rows], code[rows], slice(None))  # one read for all quantiles
    around = [np.searchsorted(rows, images) for images in chosen]
    order = [part[_falling(column.take(part))] for part in around]
    sizes = [len(part) for part in order]
    frame = _frame(unit, column.take(np.concatenate(order)))
    frame["rank"] = np.concatenate([np.arange(1, size + 1) for size in sizes])
    frame.insert(0, "quantile", np.repeat(quantiles, sizes))
    return frame


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
