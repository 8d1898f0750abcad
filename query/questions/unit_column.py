"""One unit over many images, and the exact examples that the store keeps of it."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from query.questions.columns import image_columns, nullable
from query.record.codebook import Codes
from query.record.dense import Dense
from query.record.unit import Unit
from store import layout


@dataclass(frozen=True)
class UnitColumn:
    """One unit over M accepted images, whose ids rise. All arrays are [M].

    `value` and `mean` float32 are the spatial maximum and mean. `tail_p` float64 is the share of the n accepted images
    with at least this value. `exact` says whether the value is what was measured, not decoded. `rank` int32 is the rank
    in the exact order, 0 where that is not stored. `mean_code` uint8 is the code of the mean. `y` and `x` int32 are the
    position of the maximum, -1 where it is not known.
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
    """Read a unit on accepted images: exact from `top_examples` and `tail`, else decoded.

    `ids` rise and lie in the range `within`. A decoded value is the mean of the values with its code. Its tail_p is the
    exact share of images that reach the code, which is at least the value's own.
    """
    code = dense.unit(unit.layer, unit.channel, "max", within)
    return column_of_codes(dense, unit, ids, code[ids - (within.start or 0)], within)


def column_of_codes(dense: Dense, unit: Unit, ids: NDArray[np.int64], code: Codes, within: slice) -> UnitColumn:
    """Do the same as `stored_column` if the codes of the maxima on these images have been read already."""
    book, mean_book = dense.book(unit.layer, "max"), dense.book(unit.layer, "mean")
    mean_code = dense.unit(unit.layer, unit.channel, "mean", within)[ids - (within.start or 0)]
    unknown = np.full(len(ids), 0 if unit.layer.positions == 1 else -1, np.int32)
    column = UnitColumn(
        image_ids=ids,
        value=book.means[unit.channel][code],
        mean=mean_book.means[unit.channel][mean_code],
        tail_p=book.tail_p[unit.channel][code],
        exact=np.zeros(len(ids), np.bool_),
        rank=np.zeros(len(ids), np.int32),
        mean_code=mean_code,
        y=unknown,
        x=unknown.copy(),
        n=unit.run.n,
    )
    exact = tail(unit)
    ranked = exact.append_column("rank", pa.array(np.arange(1, len(exact) + 1, dtype=np.int32)))
    _override(column, ranked, ("value", "tail_p", "rank", "y", "x"))
    if _examples_tell(unit, exact, ids):
        stored = examples(unit, "highest")
        _override(column, stored, ("value", "mean", "rank", "y", "x"))
        _override(column, with_tail_p(stored, unit.run.n), ("tail_p",))
    return column


def activations(dense: Dense, unit: Unit) -> pd.DataFrame:
    """One row per accepted image, by image_id. Columns: see the declaration."""
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


def examples(unit: Unit, direction: str, boxes: bool = False) -> pa.Table:
    """Read a unit's rows of `top_examples` by rank. `direction` is highest or lowest."""
    columns = ["rank", "image_id", "value", "mean", "y", "x"]
    box = ["box_y0", "box_x0", "box_y1", "box_x1"]  # read in any case: the next question then finds them in memory
    table = unit.run.lookup(unit.run.only("top_examples")).rows(
        columns + box, {"layer": unit.layer.name, "channel": unit.channel, "direction": direction}
    )
    table = table if boxes else table.select(columns)
    return _placed(table.set_column(0, "rank", pa.array(table["rank"].to_numpy().astype(np.int32))))


def tail(unit: Unit) -> pa.Table:
    """Read a unit's rows of `tail`: image_id, value, tail_p, y, x, by (max, mean) falling, then image_id."""
    lookup = unit.run.recorded("tail_by_unit", layout.tail_by_unit(unit.run.name, unit.layer.name))
    return _placed(lookup.rows(["image_id", "value", "tail_p", "y", "x"], {"channel": unit.channel}))


def _placed(table: pa.Table) -> pa.Table:
    """Replace an unknown y and x, of layers that are not spatial, by -1, as in the columns of a question."""
    for name in ("y", "x"):
        table = table.set_column(table.column_names.index(name), name, table[name].fill_null(-1))
    return table


def fires(unit: Unit, values: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Return which values count: in a layer that is never negative, a zero does not."""
    return (values > 0) | unit.layer.signed


def with_tail_p(stored: pa.Table, n: int) -> pa.Table:
    """Append tail_p, the share of the n images that are as high, to the highest examples.

    Examples tied with the last one are left out: more images of their value may not be stored.
    """
    falling = -stored["value"].to_numpy()
    reached = np.searchsorted(falling, falling, side="right")
    known = int(np.count_nonzero((reached < len(falling)) | (len(falling) == n)))
    return stored.slice(0, known).append_column("tail_p", pa.array(reached[:known] / n))


def rows_in(image_ids: NDArray[np.int64], ids: NDArray[np.int64]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the rows of `image_ids` that are among `ids` (rising), and their rows in `ids`."""
    rows = np.searchsorted(ids, image_ids)
    inside = np.flatnonzero(ids[np.minimum(rows, len(ids) - 1)] == image_ids) if len(ids) else np.zeros(0, np.intp)
    return inside, rows[inside]


def _examples_tell(unit: Unit, exact: pa.Table, ids: NDArray[np.int64]) -> bool:
    """Return whether a stored example may be among the images. `tail` has the same order and mostly reaches deeper."""
    deepest = unit.run.lookup(unit.run.only("top_examples")).greatest("rank")
    return len(exact) < deepest or len(rows_in(exact["image_id"].to_numpy()[:deepest], ids)[0]) > 0


def _override(column: UnitColumn, table: pa.Table, names: tuple[str, ...]) -> None:
    """Replace values of a column by the exact ones of a table."""
    of_table, of_column = rows_in(table["image_id"].to_numpy(), column.image_ids)
    for name in names:
        getattr(column, name)[of_column] = table[name].to_numpy()[of_table]
    column.exact[of_column] = True
