"""Which images excite a unit most, and which least."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from query.questions.columns import nullable, ranked_images
from query.questions.unit_column import column_of_codes, examples, fires, stored_column, tail, with_tail_p
from query.record.codebook import Codes
from query.record.dense import Dense
from query.record.run_tables import DatasetClass
from query.record.unit import Unit
from store.codes import CODES
from store.errors import UsageError

_COLUMNS = ("image_id", "value", "mean", "tail_p", "y", "x")


def top_images(dense: Dense, unit: Unit, k: int, of_class: DatasetClass | None, by: str) -> pd.DataFrame:
    """Return the first k images, of one class or of all. Columns: see the declaration.

    by "max": (max, mean) falling, then image_id; exact as far as `top_examples` or `tail` reaches, then by decoded
    values. by "mean": the code of the mean falling, then the mean. A zero of a layer that is never negative does not
    count.
    """
    if by == "max" and of_class is None:
        columns = _from_examples(dense, unit, k) or _from_tail(dense, unit, k)
        if columns is not None:
            return _top_frame(unit, columns)
    within = slice(None) if of_class is None else unit.run.images.within(of_class.index)
    wanted = unit.run.images.of_class(None if of_class is None else of_class.index)
    code = dense.unit(unit.layer, unit.channel, "mean" if by == "mean" else "max", within)
    ids, code = _reaching_enough(code, wanted, within.start or 0, k)
    by_mean = by == "mean"
    column = stored_column(dense, unit, ids, within) if by_mean else column_of_codes(dense, unit, ids, code, within)
    column = column.take(np.flatnonzero(fires(unit, column.mean if by_mean else column.value)))
    if by_mean:
        keys: tuple[NDArray[Any], ...] = (column.image_ids, -column.mean, 255 - column.mean_code)
    else:
        rank = np.where(column.rank > 0, column.rank, np.iinfo(np.int32).max)
        keys = (column.image_ids, -column.mean, -column.value, ~column.exact, rank)
    column = column.take(np.lexsort(keys)[:k])
    return _top_frame(unit, {"image_id": column.image_ids} | {name: getattr(column, name) for name in _COLUMNS[1:]})


def lowest_images(unit: Unit, k: int, of_class: DatasetClass | None) -> pd.DataFrame:
    """Return the first k stored lowest examples in the columns of top_images; value is the minimum.

    tail_p is the share of images with at most this minimum. It is NaN for ties with the last stored example, because
    more such images may not be stored. The dense record keeps maxima only, so the answer ends where the examples do.
    """
    if not unit.layer.signed:
        raise UsageError(f"unit {unit.name}: layer {unit.layer.name} is never negative, so no lowest images are kept")
    table = examples(unit, "lowest")
    stored = table["value"].to_numpy()
    if of_class is not None:
        classes = unit.run.images.class_index[table["image_id"].to_numpy()]
        table = table.take(np.flatnonzero(classes == of_class.index))
    table = table.slice(0, k)
    reached = np.searchsorted(stored, table["value"].to_numpy(), side="right")
    known = (reached < len(stored)) | (len(stored) == unit.run.n)
    columns = {name: table[name].to_numpy() for name in _COLUMNS if name != "tail_p"}
    return _top_frame(unit, columns | {"tail_p": np.where(known, reached / unit.run.n, np.nan)})


def _from_examples(dense: Dense, unit: Unit, k: int) -> dict[str, NDArray[Any]] | None:
    """Return the first k, or None if fewer examples are stored. The dense record is not read for most."""
    stored = examples(unit, "highest")
    if len(stored) < k:
        return None
    known = with_tail_p(stored, unit.run.n)["tail_p"].to_numpy()[:k]
    columns = {name: stored[name].to_numpy()[:k] for name in _COLUMNS if name != "tail_p"}
    tail_p = np.append(known, np.zeros(k - len(known)))
    if len(known) < k:  # ties of the last stored example, of which more are not stored
        tail_p[len(known) :] = _share_reaching(dense, unit, columns["value"][-1])
    return columns | {"tail_p": tail_p}


def _share_reaching(dense: Dense, unit: Unit, value: float) -> float:
    """Return the share of images with at least a stored example's value.

    It is exact at the clip and in the tail, else that of the value's code.
    """
    bound = unit.layer.upper_bound
    if bound is not None and value >= bound:
        return float(unit.run.statistics.saturated[unit.index])
    exact = tail(unit)
    same = exact["tail_p"].to_numpy()[exact["value"].to_numpy() == value]
    if len(same):
        return float(same[0])
    book = dense.book(unit.layer, "max")
    code = int(np.searchsorted(book.edges[unit.channel], value, side="right")) - 1
    return float(book.tail_p[unit.channel, code])


def _from_tail(dense: Dense, unit: Unit, k: int) -> dict[str, NDArray[Any]] | None:
    """Return the first k, or None if the unit's tail is shorter. `tail` is in the exact order; codes give the means."""
    exact = tail(unit)
    if len(exact) < k:
        return None
    columns = {name: exact[name].to_numpy()[:k].copy() for name in _COLUMNS if name != "mean"}
    mean_code = dense.unit(unit.layer, unit.channel, "mean")[columns["image_id"]]
    mean = dense.book(unit.layer, "mean").means[unit.channel][mean_code]
    stored = examples(unit, "highest")["mean"].to_numpy()[:k]  # the same images in the same order
    mean[: len(stored)] = stored
    return columns | {"mean": mean}


def _reaching_enough(code: Codes, wanted: NDArray[np.int64], start: int, k: int) -> tuple[NDArray[np.int64], Codes]:
    """Return the wanted images of the highest codes that together have k images, and their codes.

    The first k images are among them. `code` is of the images from `start` on; `wanted` are rising ids.
    """
    wanted_code = code[wanted - start] if len(wanted) < len(code) else code
    reaching = np.cumsum(np.bincount(wanted_code, minlength=CODES)[::-1])[::-1]
    least = int(np.flatnonzero(reaching >= k)[-1]) if reaching[0] >= k else 0
    rows = np.flatnonzero(wanted_code >= least)
    return wanted[rows], wanted_code[rows]


def _top_frame(unit: Unit, columns: dict[str, NDArray[Any]]) -> pd.DataFrame:
    return ranked_images(
        unit.run,
        columns["image_id"],
        value=columns["value"],
        mean=columns["mean"],
        tail_p=columns["tail_p"],
        y=nullable(columns["y"]),
        x=nullable(columns["x"]),
    )
