"""Two models, or two checkpoints of one, on the same images: which units changed, or which match."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from query.questions.columns import unit_columns
from query.record.dense import Dense
from query.record.run_tables import Run
from query.resolve import units_of_layers
from store import codes, layout
from store.codes import CODES
from store.errors import UsageError

_ALL = 1 << 27  # pairs of codes that are compared in full; beyond it a sample chooses what is
_CANDIDATES = 200  # or ten times what is asked for
_AT_ONCE = 1024  # units whose correlations with all others are held together


def compare(a: Dense, b: Dense, k: int | None, layers: str | Sequence[str] | None) -> pd.DataFrame:
    """model, layer, channel, other_model, other_layer, other_channel, rank, change, correlation, n.

    Of two runs with the same layers each unit stands beside itself; otherwise beside the unit of b that goes with it
    best. change = 1 - correlation of their maxima over the images both accepted; by change falling, then unit order; a
    unit that never varies in one of them has none and comes last. k=None: all units of the `layers` of a. Where many
    images are compared, pairs are chosen, and beyond the first candidates told, from a sample of 4,096 images.
    """
    if a.run.dataset != b.run.dataset:
        raise UsageError(f"{a.run.name} and {b.run.name} saw different images: compare runs over one dataset")
    units = units_of_layers(a.run, layers)
    same = [(x.name, x.channels) for x in a.run.layers] == [(x.name, x.channels) for x in b.run.layers]
    rows = _shared_sample(a, b)
    one, other = _Sample(a, rows[0]), _Sample(b, rows[1])
    others = units if same else _best_match(one, other, units)
    ids = np.flatnonzero(a.run.images.accepted & b.run.images.accepted)
    correlation = _sampled(one, other, units, others)
    if len(rows[0]) < len(ids):  # the sample is not everything
        few = len(units) if len(units) * len(ids) <= _ALL else max(_CANDIDATES, 10 * (k or 0))
        first = np.argsort(np.where(np.isnan(correlation), np.inf, correlation), kind="stable")[:few]
        correlation[first] = [
            _exact(a, b, int(u), int(v), ids) for u, v in zip(units[first], others[first], strict=True)
        ]
    order = np.lexsort((units, np.where(np.isnan(correlation), np.inf, correlation)))[:k]
    return pd.DataFrame(
        {
            **unit_columns(a.run, units[order]),
            **{f"other_{name}": column for name, column in unit_columns(b.run, others[order]).items()},
            "rank": np.arange(1, len(order) + 1),
            "change": 1 - correlation[order],
            "correlation": correlation[order],
            "n": len(ids),
        }
    )


def _shared_sample(a: Dense, b: Dense) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Columns of the two stored samples that are the same images."""
    ids = [run.images.all[codes.sample(run.n)] for run in (a.run, b.run)]
    _, one, other = np.intersect1d(ids[0], ids[1], assume_unique=True, return_indices=True)
    return one, other


class _Sample:
    """z of units over the shared sample, float32 [units, images], of length 1; 0 for a unit that never varies there."""

    def __init__(self, dense: Dense, columns: NDArray[np.intp]) -> None:
        self.run: Run = dense.run
        self._dense, self._columns = dense, columns
        self._codes = dense.dataset(dense.run.array(layout.array(dense.run.name, "sample")), "max")

    def __call__(self, units: NDArray[np.int64]) -> NDArray[np.float32]:
        z = np.empty((len(units), len(self._columns)), np.float32)
        index = self.run.layers_of(units)
        for i in np.unique(index):
            layer, here = self.run.layers[int(i)], np.flatnonzero(index == i)
            channels = units[here] - layer.start
            found = self._codes[layer.columns][channels][:, self._columns]
            flat = self._dense.book(layer, "max").standard.ravel()
            z[here] = flat[found + channels[:, None].astype(np.int32) * CODES]
        z -= z.mean(1, keepdims=True)
        length = np.linalg.norm(z, axis=1, keepdims=True)
        scaled: NDArray[np.float32] = np.divide(z, length, out=np.zeros_like(z), where=length > 1e-6)
        return scaled


def _sampled(a: _Sample, b: _Sample, units: NDArray[np.int64], others: NDArray[np.int64]) -> NDArray[np.float64]:
    """Correlation of each unit of a with its other of b over the sample, NaN where one does not vary."""
    found = np.full(len(units), np.nan)
    for first in range(0, len(units), _AT_ONCE):
        rows = slice(first, first + _AT_ONCE)
        x, y = a(units[rows]), b(others[rows])
        vary = x.any(1) & y.any(1)
        found[rows] = np.where(vary, np.clip((x * y).sum(1, dtype=np.float64), -1, 1), np.nan)
    return found


def _best_match(a: _Sample, b: _Sample, units: NDArray[np.int64]) -> NDArray[np.int64]:
    """For each unit of a the unit of b that correlates most over the sample."""
    best, score = np.zeros(len(units), np.int64), np.full(len(units), -np.inf)
    for start in range(0, b.run.units, _AT_ONCE):
        others = np.arange(start, min(start + _AT_ONCE, b.run.units))
        y = b(others).T
        for first in range(0, len(units), _AT_ONCE):
            rows = slice(first, first + _AT_ONCE)
            found = a(units[rows]) @ y
            place = found.argmax(1)
            value = found[np.arange(len(found)), place]
            better = value > score[rows]
            best[rows], score[rows] = np.where(better, others[place], best[rows]), np.maximum(value, score[rows])
    return best


def _exact(a: Dense, b: Dense, unit: int, other: int, ids: NDArray[np.int64]) -> float:
    """Pearson over all shared images from decoded maxima, each unit's rounding divided out (see similarity)."""
    deviations, kept = [], []
    for dense, place in ((a, unit), (b, other)):
        layer = dense.run.layer_of(place)
        book, channel = dense.book(layer, "max"), place - layer.start
        value = book.means[channel].astype(np.float64)[dense.unit(layer, channel, "max")[ids]]
        deviations.append(value - value.mean())
        kept.append((book.moments[1][channel] / dense.run.statistics.max_sd[place]) if value.std() > 0 else np.nan)
    length = np.linalg.norm(deviations[0]) * np.linalg.norm(deviations[1])
    if not length > 0 or np.isnan(kept).any():
        return float("nan")
    return float(np.clip(deviations[0] @ deviations[1] / length / (kept[0] * kept[1]), -1, 1))
