"""Which images excite a unit: one unit over all images, their order, and two units together."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from store import layout
from store.codes import CODES
from store.errors import UsageError

from .dense import Codes, Dense, Statistic
from .frames import image_columns, nullable
from .names import DatasetClass, Unit


@dataclass(frozen=True)
class UnitColumn:
    """One unit over M accepted images, image_ids rising.

    value, mean float32: spatial maximum and mean; tail_p float64: share of the n accepted images with at least this
    value; exact bool: value is so, not decoded; rank int32: as a stored example, 0 where it is none; mean_code uint8:
    the code of the mean; y, x int32: place of the maximum, -1 where not known.
    """

    image_ids: NDArray[np.int64]
    value: NDArray[np.float32]
    mean: NDArray[np.float32]
    tail_p: NDArray[np.float64]
    exact: NDArray[np.bool_]
    rank: NDArray[np.int32]
    mean_code: NDArray[np.uint8]
    y: NDArray[np.int32]
    x: NDArray[np.int32]
    n: int

    def take(self, rows: NDArray[Any]) -> UnitColumn:
        arrays = {f.name: getattr(self, f.name)[rows] for f in fields(self) if f.name != "n"}
        return UnitColumn(**arrays, n=self.n)


def stored_column(
    dense: Dense, unit: Unit, ids: NDArray[np.int64] | None = None, found: dict[Statistic, Codes] | None = None
) -> UnitColumn:
    """Over accepted images (rising `ids`; all by default): exact from `top_examples` and `tail`, else decoded.

    A decoded value is the mean of the values with its code, and its tail_p the exact share of images that reach the
    code: at least the value's own.
    """
    ids = np.flatnonzero(unit.run.images.accepted) if ids is None else ids
    found = dense.unit(unit.layer, unit.channel) if found is None else found
    book, mean_book = dense.book(unit.layer, "max"), dense.book(unit.layer, "mean")
    code, mean_code = found["max"][ids], found["mean"][ids]
    nowhere = np.full(len(ids), 0 if unit.layer.positions == 1 else -1, np.int32)
    column = UnitColumn(
        image_ids=ids,
        value=book.means[unit.channel][code],
        mean=mean_book.means[unit.channel][mean_code],
        tail_p=book.tail_p[unit.channel][code],
        exact=np.zeros(len(ids), np.bool_),
        rank=np.zeros(len(ids), np.int32),
        mean_code=mean_code,
        y=nowhere,
        x=nowhere.copy(),
        n=unit.run.n,
    )
    stored = examples(unit, "highest")
    _override(column, stored, ("value", "mean", "rank", "y", "x"))
    _override(column, _with_tail_p(stored, unit.run.n), ("tail_p",))
    _override(column, _tail(unit), ("value", "tail_p", "y", "x"))
    return column


def examples(unit: Unit, direction: str) -> pa.Table:
    """A unit's rows of `top_examples` in order of rank."""
    return unit.run.rows(
        "top_examples",
        "image_id, rank::INTEGER AS rank, value, mean, y, x, box_y0, box_x0, box_y1, box_x1",
        "layer = ? AND channel = ? AND direction = ?",
        [unit.layer.name, unit.channel, direction],
        "ORDER BY rank",
    )


def top_images(dense: Dense, unit: Unit, k: int, of_class: DatasetClass | None, by: str) -> pd.DataFrame:
    """The first k images: rank, image_id, path, label, class_index, value, mean, tail_p, y, x, n.

    max: (max, mean) falling, image_id; exact as far as `top_examples` reaches, then by the exact and last the decoded
    values. mean: by the code of the mean, then the mean. A zero of a layer that is never negative does not count.
    """
    found = dense.unit(unit.layer, unit.channel)
    wanted = unit.run.images.accepted
    if of_class is not None:
        wanted = wanted & (unit.run.images.class_index == of_class.index)
    column = stored_column(dense, unit, _reaching_enough(found["mean" if by == "mean" else "max"], wanted, k), found)
    column = column.take(np.flatnonzero(_counts(unit, column.value if by == "max" else column.mean)))
    if by == "max":
        place = np.where(column.rank > 0, column.rank, np.iinfo(np.int32).max)
        keys: tuple[NDArray[Any], ...] = (column.image_ids, -column.mean, -column.value, ~column.exact, place)
    else:
        keys = (column.image_ids, -column.mean, 255 - column.mean_code)
    column = column.take(np.lexsort(keys)[:k])
    return _ranked(unit, column.image_ids).assign(
        value=column.value,
        mean=column.mean,
        tail_p=column.tail_p,
        y=nullable(column.y),
        x=nullable(column.x),
        n=column.n,
    )


def lowest_images(unit: Unit, k: int, of_class: DatasetClass | None) -> pd.DataFrame:
    """The first k of the stored lowest examples, in top_images' columns: value is the minimum.

    tail_p is the share of images with no more than this minimum, NaN for ties with the last stored one, of which more
    may lie beyond. The dense record keeps maxima, so the answer ends where the stored examples do.
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
    return _ranked(unit, table["image_id"].to_numpy()).assign(
        value=table["value"].to_numpy(),
        mean=table["mean"].to_numpy(),
        tail_p=np.where(known, reached / unit.run.n, np.nan),
        y=nullable(table["y"].to_numpy()),
        x=nullable(table["x"].to_numpy()),
        n=unit.run.n,
    )


def activations(dense: Dense, unit: Unit) -> pd.DataFrame:
    """image_id, path, label, class_index, value, mean, tail_p, exact, y, x, n over all accepted images."""
    column = stored_column(dense, unit)
    return pd.DataFrame(
        {
            **image_columns(unit.run, column.image_ids),
            "value": column.value,
            "mean": column.mean,
            "tail_p": column.tail_p,
            "exact": column.exact,
            "y": nullable(column.y),
            "x": nullable(column.x),
            "n": column.n,
        }
    )


def both(dense_a: Dense, a: Unit, dense_b: Dense, b: Unit, k: int, without: bool) -> pd.DataFrame:
    """Images on which both units are high: by the larger of the two tail_p, then their sum, then image_id.

    `without`: a is high and b is not (b at zero, or below its median image): by a's tail_p, then b's falling, image_id.
    """
    if a.run.dataset != b.run.dataset:
        raise UsageError(f"{a.name} and {b.name} were measured on different datasets ({a.run.name}, {b.run.name})")
    one, other = stored_column(dense_a, a), stored_column(dense_b, b)
    ids = np.intersect1d(one.image_ids, other.image_ids)
    one, other = (c.take(np.searchsorted(c.image_ids, ids)) for c in (one, other))
    on_a, on_b = _counts(a, one.value), _counts(b, other.value)
    p, q = one.tail_p, other.tail_p
    if without:
        kept, keys = on_a & (~on_b | (q > 0.5)), (ids, -q, p)
    else:
        kept, keys = on_a & on_b, (ids, p + q, np.maximum(p, q))
    rows = np.flatnonzero(kept)
    rows = rows[np.lexsort(tuple(key[rows] for key in keys))[:k]]
    return _ranked(a, ids[rows]).assign(
        value_a=one.value[rows], tail_p_a=p[rows], value_b=other.value[rows], tail_p_b=q[rows], n=one.n
    )


def _counts(unit: Unit, values: NDArray[np.float32]) -> NDArray[np.bool_]:
    """A zero of a layer that is never negative is no answer."""
    return (values > 0) | unit.layer.signed


def _reaching_enough(code: Codes, wanted: NDArray[np.bool_], k: int) -> NDArray[np.int64]:
    """The wanted images of the highest codes that together hold k: the first k are among them."""
    reaching = np.cumsum(np.bincount(code[wanted], minlength=CODES)[::-1])[::-1]
    least = int(np.flatnonzero(reaching >= k)[-1]) if reaching[0] >= k else 0
    return np.flatnonzero(wanted & (code >= least))


def _override(column: UnitColumn, table: pa.Table, names: tuple[str, ...]) -> None:
    image_ids = table["image_id"].to_numpy()
    here = np.isin(image_ids, column.image_ids)
    rows = np.searchsorted(column.image_ids, image_ids[here])
    for name in names:
        getattr(column, name)[rows] = table[name].to_numpy()[here]
    column.exact[rows] = True


def _with_tail_p(stored: pa.Table, n: int) -> pa.Table:
    """Highest examples with their tail_p: how many are as high. Not ties of the last: more may lie beyond."""
    falling = -stored["value"].to_numpy()
    reached = np.searchsorted(falling, falling, side="right")
    known = (reached < len(falling)) | (len(falling) == n)
    return stored.append_column("tail_p", pa.array(reached / n)).filter(pa.array(known))


def _tail(unit: Unit) -> pa.Table:
    run = unit.run
    relative = layout.tail_by_unit(run.name, unit.layer.name)
    path = run.catalog.root / relative
    if path not in run.files.tables.get("tail_by_unit", ()):
        raise UsageError(f"run {run.name} has no {relative} yet: finish it with `unitscope run`")
    return run.rows_of([path], "image_id, value, tail_p, y, x", "channel = ?", [unit.channel])


def _ranked(unit: Unit, ids: NDArray[np.int64]) -> pd.DataFrame:
    """rank, image_id, path, label, class_index."""
    return pd.DataFrame({"rank": np.arange(1, len(ids) + 1), **image_columns(unit.run, ids)})
