"""Which images excite a unit: one unit over all images, their order, and two units together."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from query.questions.columns import image_columns, nullable
from query.record.dense import Codes, Dense
from query.record.run_tables import DatasetClass
from query.resolve import Unit
from store import layout
from store.codes import CODES, TAIL_MAX_P
from store.errors import UsageError


@dataclass(frozen=True)
class UnitColumn:
    """One unit over M accepted images, image_ids rising.

    value, mean float32: spatial maximum and mean; tail_p float64: share of the n accepted images with at least this
    value; exact bool: value is so, not decoded; rank int32: place in the exact order, 0 where not stored; mean_code
    uint8: the code of the mean; y, x int32: place of the maximum, -1 where not known.
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


def stored_column(dense: Dense, unit: Unit, ids: NDArray[np.int64], within: slice = slice(None)) -> UnitColumn:
    """Over accepted images (rising `ids`, all `within`): exact from `top_examples` and `tail`, else decoded.

    A decoded value is the mean of the values with its code, and its tail_p the exact share of images that reach the
    code: at least the value's own.
    """
    code = dense.unit(unit.layer, unit.channel, "max", within)
    return _column(dense, unit, ids, code[ids - (within.start or 0)], within)


def _column(dense: Dense, unit: Unit, ids: NDArray[np.int64], code: Codes, within: slice) -> UnitColumn:
    book, mean_book = dense.book(unit.layer, "max"), dense.book(unit.layer, "mean")
    mean_code = dense.unit(unit.layer, unit.channel, "mean", within)[ids - (within.start or 0)]
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
    exact = tail(unit)
    ranked = exact.append_column("rank", pa.array(np.arange(1, len(exact) + 1, dtype=np.int32)))
    _override(column, ranked, ("value", "tail_p", "rank", "y", "x"))
    if _examples_tell(unit, exact, ids):
        stored = examples(unit, "highest")
        _override(column, stored, ("value", "mean", "rank", "y", "x"))
        _override(column, _with_tail_p(stored, unit.run.n), ("tail_p",))
    return column


def _examples_tell(unit: Unit, exact: pa.Table, ids: NDArray[np.int64]) -> bool:
    """Whether a stored example is among the images, or may be: `tail` has the same order, and mostly reaches deeper."""
    deepest = unit.run.lookup(unit.run.only("top_examples")).greatest("rank")
    return len(exact) < deepest or len(_places(exact["image_id"].to_numpy()[:deepest], ids)[0]) > 0


def examples(unit: Unit, direction: str, boxes: bool = False) -> pa.Table:
    """A unit's rows of `top_examples` in order of rank."""
    columns = ["rank", "image_id", "value", "mean", "y", "x"]
    columns += ["box_y0", "box_x0", "box_y1", "box_x1"] if boxes else []
    table = unit.run.lookup(unit.run.only("top_examples")).rows(
        columns, {"layer": unit.layer.name, "channel": unit.channel, "direction": direction}
    )
    return table.set_column(0, "rank", pa.array(table["rank"].to_numpy().astype(np.int32)))


def tail(unit: Unit) -> pa.Table:
    """A unit's rows of `tail`: image_id, value, tail_p, y, x, by (max, mean) falling, image_id."""
    lookup = unit.run.recorded("tail_by_unit", layout.tail_by_unit(unit.run.name, unit.layer.name))
    return lookup.rows(["image_id", "value", "tail_p", "y", "x"], {"channel": unit.channel})


def top_images(dense: Dense, unit: Unit, k: int, of_class: DatasetClass | None, by: str) -> pd.DataFrame:
    """The first k images: rank, image_id, path, label, class_index, value, mean, tail_p, y, x, n.

    max: (max, mean) falling, image_id; exact as far as `top_examples` or `tail` reaches, then by the decoded values.
    mean: by the code of the mean, then the mean. A zero of a layer that is never negative does not count.
    """
    if by == "max" and of_class is None:
        found = _from_examples(dense, unit, k) or _from_tail(dense, unit, k)
        if found is not None:
            return _top_frame(unit, found)
    within = slice(None) if of_class is None else unit.run.images.within(of_class.index)
    wanted = unit.run.images.of_class(None if of_class is None else of_class.index)
    code = dense.unit(unit.layer, unit.channel, "mean" if by == "mean" else "max", within)
    ids, code = _reaching_enough(code, wanted, within.start or 0, k)
    column = stored_column(dense, unit, ids, within) if by == "mean" else _column(dense, unit, ids, code, within)
    column = column.take(np.flatnonzero(_counts(unit, column.value if by == "max" else column.mean)))
    if by == "max":
        place = np.where(column.rank > 0, column.rank, np.iinfo(np.int32).max)
        keys: tuple[NDArray[Any], ...] = (column.image_ids, -column.mean, -column.value, ~column.exact, place)
    else:
        keys = (column.image_ids, -column.mean, 255 - column.mean_code)
    column = column.take(np.lexsort(keys)[:k])
    return _top_frame(unit, {"image_id": column.image_ids} | {name: getattr(column, name) for name in _COLUMNS[1:]})


def _from_examples(dense: Dense, unit: Unit, k: int) -> dict[str, NDArray[Any]] | None:
    """The first k where so many examples are stored: the dense record need not be read."""
    stored = examples(unit, "highest")
    if len(stored) < k:
        return None
    known = _with_tail_p(stored, unit.run.n)["tail_p"].to_numpy()[:k]
    found = {name: stored[name].to_numpy()[:k] for name in ("image_id", "value", "mean", "y", "x")}
    tail_p = np.append(known, np.zeros(k - len(known)))
    if len(known) < k:  # ties of the last stored example, of which more lie beyond
        tail_p[len(known) :] = _share_reaching(dense, unit, found["value"][-1])
    return found | {"tail_p": tail_p}


def _share_reaching(dense: Dense, unit: Unit, value: float) -> float:
    """Share of images with at least a stored example's value: exact at the clip and in the tail, else its code's."""
    bound = unit.layer.upper_bound
    if bound is not None and value >= bound:
        return float(unit.run.statistics.saturated[unit.place])
    exact = tail(unit)
    same = exact["tail_p"].to_numpy()[exact["value"].to_numpy() == value]
    if len(same):
        return float(same[0])
    book = dense.book(unit.layer, "max")
    code = int(np.searchsorted(book.edges[unit.channel], value, side="right")) - 1
    return float(book.tail_p[unit.channel, code])


def _from_tail(dense: Dense, unit: Unit, k: int) -> dict[str, NDArray[Any]] | None:
    """The first k where the unit's tail has so many: it is the beginning of the exact order, and codes tell means."""
    exact = tail(unit)
    if len(exact) < k:
        return None
    found = {name: exact[name].to_numpy()[:k].copy() for name in ("image_id", "value", "tail_p", "y", "x")}
    mean_code = dense.unit(unit.layer, unit.channel, "mean")[found["image_id"]]
    mean = dense.book(unit.layer, "mean").means[unit.channel][mean_code]
    stored = examples(unit, "highest")["mean"].to_numpy()[:k]  # the same images in the same order
    mean[: len(stored)] = stored
    return found | {"mean": mean}


_COLUMNS = ("image_id", "value", "mean", "tail_p", "y", "x")


def _top_frame(unit: Unit, columns: dict[str, NDArray[Any]]) -> pd.DataFrame:
    return _ranked(
        unit,
        columns["image_id"],
        value=columns["value"],
        mean=columns["mean"],
        tail_p=columns["tail_p"],
        y=nullable(columns["y"]),
        x=nullable(columns["x"]),
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
    return _ranked(
        unit,
        table["image_id"].to_numpy(),
        value=table["value"].to_numpy(),
        mean=table["mean"].to_numpy(),
        tail_p=np.where(known, reached / unit.run.n, np.nan),
        y=nullable(table["y"].to_numpy()),
        x=nullable(table["x"].to_numpy()),
    )


def activations(dense: Dense, unit: Unit) -> pd.DataFrame:
    """image_id, path, label, class_index, value, mean, tail_p, exact, y, x, n over all accepted images."""
    column = stored_column(dense, unit, unit.run.images.all)
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
    Images in both sure tails, or in a's, come before all others: where they are enough, nothing else is looked at.
    """
    if a.run.dataset != b.run.dataset:
        raise UsageError(f"{a.name} and {b.name} were measured on different datasets ({a.run.name}, {b.run.name})")
    tails = tail(a), tail(b)
    sure = [_sure(table) for table in tails]
    ids = sure[0] if without else np.intersect1d(sure[0], sure[1], assume_unique=True)
    found = _together((dense_a, a, tails[0]), (dense_b, b, tails[1]), ids, k, without)
    if len(found) < k:
        ids = np.flatnonzero(a.run.images.accepted & b.run.images.accepted)
        found = _together((dense_a, a, tails[0]), (dense_b, b, tails[1]), ids, k, without)
    return found


_Measured = tuple[Dense, Unit, pa.Table]  # with the unit's tail


def _sure(exact: pa.Table) -> NDArray[np.int64]:
    """Images with tail_p <= 0.01, rising: all of them are in `tail`."""
    ids: NDArray[np.int64] = exact["image_id"].to_numpy()[exact["tail_p"].to_numpy() <= TAIL_MAX_P]
    return np.sort(ids)


def _together(a: _Measured, b: _Measured, ids: NDArray[np.int64], k: int, without: bool) -> pd.DataFrame:
    (value_a, p), (value_b, q) = _values(*a, ids), _values(*b, ids)
    on_a, on_b = _counts(a[1], value_a), _counts(b[1], value_b)
    if without:
        kept, keys = on_a & (~on_b | (q > 0.5)), (ids, -q, p)
    else:
        kept, keys = on_a & on_b, (ids, p + q, np.maximum(p, q))
    rows = np.flatnonzero(kept)
    rows = rows[_lexsorted([key[rows] for key in keys], k)]
    return _ranked(a[1], ids[rows], value_a=value_a[rows], tail_p_a=p[rows], value_b=value_b[rows], tail_p_b=q[rows])


def _lexsorted(keys: list[NDArray[Any]], k: int) -> NDArray[np.intp]:
    """The first k places of np.lexsort(keys): only those that can be among them by the last key are sorted."""
    few = np.arange(len(keys[-1]))
    if len(few) > 4 * k:
        few = np.flatnonzero(keys[-1] <= np.partition(keys[-1], k - 1)[k - 1])
    found: NDArray[np.intp] = few[np.lexsort([key[few] for key in keys])[:k]]
    return found


def _values(
    dense: Dense, unit: Unit, exact: pa.Table, ids: NDArray[np.int64]
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """value and tail_p of a unit on accepted images (rising ids); the codes are not read where `tail` has them all."""
    place, where = _places(exact["image_id"].to_numpy(), ids)
    if len(where) == len(ids):
        value, tail_p = np.empty(len(ids), np.float32), np.empty(len(ids))
    else:
        code, book = dense.unit(unit.layer, unit.channel, "max")[ids], dense.book(unit.layer, "max")
        value, tail_p = book.means[unit.channel][code], book.tail_p[unit.channel][code]
        if len(exact) < unit.run.lookup(unit.run.only("top_examples")).greatest("rank"):
            _fill(ids, _with_tail_p(examples(unit, "highest"), unit.run.n), value, tail_p)
    value[where], tail_p[where] = (exact[name].to_numpy()[place] for name in ("value", "tail_p"))
    return value, tail_p


def _fill(ids: NDArray[np.int64], table: pa.Table, value: NDArray[np.float32], tail_p: NDArray[np.float64]) -> None:
    place, where = _places(table["image_id"].to_numpy(), ids)
    value[where], tail_p[where] = (table[name].to_numpy()[place] for name in ("value", "tail_p"))


def _places(found: NDArray[np.int64], ids: NDArray[np.int64]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Which of `found` are among `ids` (rising), and where there."""
    where = np.searchsorted(ids, found)
    inside = np.flatnonzero(ids[np.minimum(where, len(ids) - 1)] == found) if len(ids) else np.zeros(0, np.intp)
    return inside, where[inside]


def _counts(unit: Unit, values: NDArray[np.float32]) -> NDArray[np.bool_]:
    """A zero of a layer that is never negative is no answer."""
    return (values > 0) | unit.layer.signed


def _reaching_enough(code: Codes, wanted: NDArray[np.int64], start: int, k: int) -> tuple[NDArray[np.int64], Codes]:
    """The wanted images of the highest codes that together hold k (the first k are among them), and their codes.

    code: of the images from `start` on; wanted: rising ids.
    """
    found = code[wanted - start] if len(wanted) < len(code) else code
    reaching = np.cumsum(np.bincount(found, minlength=CODES)[::-1])[::-1]
    least = int(np.flatnonzero(reaching >= k)[-1]) if reaching[0] >= k else 0
    rows = np.flatnonzero(found >= least)
    return wanted[rows], found[rows]


def _override(column: UnitColumn, table: pa.Table, names: tuple[str, ...]) -> None:
    here, rows = _places(table["image_id"].to_numpy(), column.image_ids)
    for name in names:
        getattr(column, name)[rows] = table[name].to_numpy()[here]
    column.exact[rows] = True


def _with_tail_p(stored: pa.Table, n: int) -> pa.Table:
    """Highest examples with their tail_p: how many are as high. Not ties of the last: more may lie beyond."""
    falling = -stored["value"].to_numpy()
    reached = np.searchsorted(falling, falling, side="right")
    known = int(np.count_nonzero((reached < len(falling)) | (len(falling) == n)))
    return stored.slice(0, known).append_column("tail_p", pa.array(reached[:known] / n))


def _ranked(unit: Unit, ids: NDArray[np.int64], **columns: Any) -> pd.DataFrame:
    """rank, image_id, path, label, class_index, then these columns, then n."""
    images = image_columns(unit.run, ids)
    return pd.DataFrame({"rank": np.arange(1, len(ids) + 1), **images, **columns, "n": unit.run.n})
