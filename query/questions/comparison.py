"""Which units changed, or match, between two models or two checkpoints on the same images."""

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

_ALL = 1 << 27  # pairs of codes that are compared in full; with more, a sample of images chooses candidates
_CANDIDATES = 200  # compared in full then, or ten times k if that is more
_AT_ONCE = 1024  # units whose correlations with all others are held together


def compare(a: Dense, b: Dense, k: int | None, layers: str | Sequence[str] | None) -> pd.DataFrame:
    """Return units of a by change falling, then unit order; all if k is None. Columns: see the declaration.

    If both runs have the same layers, each unit is compared with itself, otherwise with the unit of b that correlates
    with it best. change = 1 - correlation of the maxima over the images that both runs accepted. A unit that never
    varies in one of the runs has no correlation and comes last. With many images, a sample of 4,096 of them chooses the
    pairs; correlations of pairs that are not among the first candidates are those of the sample.
    """
    if a.run.dataset != b.run.dataset:
        raise UsageError(f"{a.run.name} and {b.run.name} saw different images: compare runs over one dataset")
    units = units_of_layers(a.run, layers)
    same = [(x.name, x.channels) for x in a.run.layers] == [(x.name, x.channels) for x in b.run.layers]
    columns = _shared_sample(a, b)
    sample_a, sample_b = _Sample(a, columns[0]), _Sample(b, columns[1])
    others = units if same else _best_match(sample_a, sample_b, units)
    ids = np.flatnonzero(a.run.images.accepted & b.run.images.accepted)
    correlation = _sampled(sample_a, sample_b, units, others)
    if len(columns[0]) < len(ids):  # the sample is not all images
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
    """Return the columns of the two stored samples that are the same images."""
    ids = [run.images.all[codes.sample(run.n)] for run in (a.run, b.run)]
    _, columns_a, columns_b = np.intersect1d(ids[0], ids[1], assume_unique=True, return_indices=True)
    return columns_a, columns_b


class _Sample:
    """z of units over the shared sample, float32 [units, images]. Each row has length 1, or 0 if it does not vary."""

    def __init__(self, dense: Dense, columns: NDArray[np.intp]) -> None:
        self.run: Run = dense.run
        self._dense, self._columns = dense, columns
        self._codes = dense.dataset(
            dense.run.array(layout.array(dense.run.name, "sample")), "max", "uint8", dense.run.units, None
        )

    def __call__(self, units: NDArray[np.int64]) -> NDArray[np.float32]:
        z = np.empty((len(units), len(self._columns)), np.float32)
        index = self.run.layers_of(units)
        for i in np.unique(index):
            layer, rows = self.run.layers[int(i)], np.flatnonzero(index == i)
            channels = units[rows] - layer.start
            code = self._codes[layer.columns][channels][:, self._columns]
            flat = self._dense.book(layer, "max").standard.ravel()
            z[rows] = flat[code + channels[:, None].astype(np.int32) * CODES]
        z -= z.mean(1, keepdims=True)
        length = np.linalg.norm(z, axis=1, keepdims=True)
        scaled: NDArray[np.float32] = np.divide(z, length, out=np.zeros_like(z), where=length > 1e-6)
        return scaled


def _sampled(a: _Sample, b: _Sample, units: NDArray[np.int64], others: NDArray[np.int64]) -> NDArray[np.float64]:
    """Correlate each unit of a with its other of b over the sample. NaN if one of them does not vary."""
    correlation = np.full(len(units), np.nan)
    for first in range(0, len(units), _AT_ONCE):
        rows = slice(first, first + _AT_ONCE)
        x, y = a(units[rows]), b(others[rows])
        vary = x.any(1) & y.any(1)
        correlation[rows] = np.where(vary, np.clip((x * y).sum(1, dtype=np.float64), -1, 1), np.nan)
    return correlation


def _best_match(a: _Sample, b: _Sample, units: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return for each unit of a the unit of b that correlates most over the sample."""
    best, score = np.zeros(len(units), np.int64), np.full(len(units), -np.inf)
    for start in range(0, b.run.units, _AT_ONCE):
        others = np.arange(start, min(start + _AT_ONCE, b.run.units))
        y = b(others).T
        for first in range(0, len(units), _AT_ONCE):
            rows = slice(first, first + _AT_ONCE)
            correlation = a(units[rows]) @ y
            column = correlation.argmax(1)
            value = correlation[np.arange(len(correlation)), column]
            better = value > score[rows]
            best[rows], score[rows] = np.where(better, others[column], best[rows]), np.maximum(value, score[rows])
    return best


def _exact(a: Dense, b: Dense, unit: int, other: int, ids: NDArray[np.int64]) -> float:
    """Correlate two units over all shared images from decoded maxima.

    Decoding keeps a known share of each unit's deviation, which is divided out (see `correlations` in similarity).
    """
    deviations, kept = [], []
    for dense, unit_index in ((a, unit), (b, other)):
        layer = dense.run.layer_of(unit_index)
        book, channel = dense.book(layer, "max"), unit_index - layer.start
        value = book.means[channel].astype(np.float64)[dense.unit(layer, channel, "max")[ids]]
        deviations.append(value - value.mean())
        sd = dense.run.statistics.max_sd[unit_index]
        kept.append((book.moments[1][channel] / sd) if value.std() > 0 else np.nan)
    length = np.linalg.norm(deviations[0]) * np.linalg.norm(deviations[1])
    if not length > 0 or np.isnan(kept).any():
        return float("nan")
    return float(np.clip(deviations[0] @ deviations[1] / length / (kept[0] * kept[1]), -1, 1))
