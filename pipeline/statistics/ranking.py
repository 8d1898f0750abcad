"""Orders of images for a unit, tails, quantiles, and class selectivity. All are exact, and ties are defined."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from store.codes import TAIL_MAX_P, TAIL_MIN_IMAGES

Floats = NDArray[np.float32]
Ids = NDArray[np.int64]

QUANTILES = {"q50": 0.5, "q90": 0.9, "q99": 0.99, "q999": 0.999, "q9999": 0.9999}
FEWEST_OF_CLASS = 10  # classes with fewer images get no numbers


def highest(values: Floats, means: Floats, ids: Ids, k: int, above_zero: bool) -> Ids:
    """Return the rows of the k highest images of one unit, ordered by value desc, mean desc, id asc. Arrays are [N].

    `above_zero` leaves out images whose value is not above zero.
    """
    rows = _at_least(values, k, above_zero)
    return rows[np.lexsort((ids[rows], -means[rows], -values[rows]))][:k]


def lowest(values: Floats, ids: Ids, k: int) -> Ids:
    """Return the rows of the k lowest images of one unit, ordered by value asc, id asc. Arrays are [N]."""
    rows = _at_least(-values, k, False)
    return rows[np.lexsort((ids[rows], values[rows]))][:k]


def _at_least(values: Floats, k: int, above_zero: bool) -> Ids:
    """Return the rows that can be among the k highest: those whose value is not below the k-th highest."""
    if len(values) > 4 * k:
        values_k = np.partition(values, len(values) - k)[len(values) - k]
        return np.flatnonzero((values >= values_k) & ((values > 0) | (not above_zero)))
    return np.flatnonzero(values > 0) if above_zero else np.arange(len(values))


def tail_probabilities(values: Floats, ordered: Floats) -> NDArray[np.float64]:
    """Return the share of images that reach each value. `ordered`: the unit's values over all N images, ascending."""
    reached = len(ordered) - np.searchsorted(ordered, values, side="left")
    return np.asarray(reached / len(ordered), np.float64)


def tail_length(images: int) -> int:
    """Return the largest number of images that a unit's tail can have."""
    return max(TAIL_MIN_IMAGES, int(TAIL_MAX_P * images + 1e-9))


def quantiles(ordered: Floats) -> dict[str, Floats]:
    """Return for each share p the smallest value that p of the images do not exceed. ordered: [N, C], ascending."""
    n = len(ordered)
    return {name: ordered[max(int(np.ceil(p * n - 1e-9)), 1) - 1] for name, p in QUANTILES.items()}


def class_means(values: Floats, classes: NDArray[np.int64], count: int) -> NDArray[np.float64]:
    """Return the mean of each class's rows, float64 [count, C], NaN for classes without rows.

    values: [N, C]; classes: [N], -1 for rows without a class.
    """
    means = np.full((count, values.shape[1]), np.nan)
    order = np.argsort(classes, kind="stable")
    present, first = np.unique(classes[order], return_index=True)
    if len(present):
        sizes = np.diff(np.append(first, len(order)))
        averages = np.add.reduceat(values[order].astype(np.float64), first, axis=0) / sizes[:, None]
        means[present[present >= 0]] = averages[present >= 0]
    return means


def auc(values: Floats, classes: NDArray[np.int64], sizes: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the area under the ROC curve of each class against the other labelled images (Mann-Whitney).

    A tie counts half. values: [N], of labelled images only; classes: [N], from 0; sizes: [K], images per class. The
    result is float64 [K], NaN for classes with fewer than 10 images or without other images.
    """
    order = np.argsort(values)
    ordered = values[order]
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]])[: len(ordered)])
    ends = np.append(starts[1:], len(ordered))
    ranks = np.repeat((starts + ends + 1) / 2, ends - starts)  # ties share the mean of their ranks; ranks start at 1
    sums = np.bincount(classes[order], weights=ranks, minlength=len(sizes))
    others = len(values) - sizes
    usable = (sizes >= FEWEST_OF_CLASS) & (others > 0)
    area = np.full(len(sizes), np.nan)
    wins = sums - sizes * (sizes + 1) / 2
    np.divide(wins, sizes * others, out=area, where=usable)
    return area


def selectivity(means: NDArray[np.float64], sizes: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the class selectivity index (Morcos et al. 2018) and the row of the best class of each unit.

    Only classes of at least 10 images count. means: [K, C]; sizes: [K], images per class. The index is float64 [C], NaN
    if there are fewer than two such classes or the unit fires for none. The row is int64 [C], -1 if there is no class.
    """
    usable = np.flatnonzero(sizes >= FEWEST_OF_CLASS)
    channels = means.shape[1]
    index, best = np.full(channels, np.nan), np.full(channels, -1, np.int64)
    if len(usable) == 0:
        return index, best
    chosen = means[usable]
    best = usable[chosen.argmax(axis=0)]
    if len(usable) >= 2:
        top = chosen.max(axis=0)
        others = (chosen.sum(axis=0) - top) / (len(usable) - 1)
        np.divide(top - others, top + others, out=index, where=top + others > 0)
    return index, best
