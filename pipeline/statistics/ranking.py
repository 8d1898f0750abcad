"""Orders of images for a unit, tails, quantiles and how well a unit tells a class: exact, ties defined."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from store.codes import TAIL_MAX_P, TAIL_MIN_IMAGES

Floats = NDArray[np.float32]
Ids = NDArray[np.int64]

QUANTILES = {"q50": 0.5, "q90": 0.9, "q99": 0.99, "q999": 0.999, "q9999": 0.9999}
FEWEST_OF_CLASS = 10  # images a class needs before a number about it is given


def highest(values: Floats, means: Floats, ids: Ids, k: int, above_zero: bool) -> Ids:
    """Rows of the k highest images in the order (value desc, mean desc, id asc). One unit: arrays [N]."""
    rows = _at_least(values, k, above_zero)
    return rows[np.lexsort((ids[rows], -means[rows], -values[rows]))][:k]


def lowest(values: Floats, ids: Ids, k: int) -> Ids:
    """Rows of the k lowest images in the order (value asc, id asc). One unit: arrays [N]."""
    rows = _at_least(-values, k, False)
    return rows[np.lexsort((ids[rows], values[rows]))][:k]


def _at_least(values: Floats, k: int, above_zero: bool) -> Ids:
    """Rows that can be among the k highest: those not below the k-th value."""
    if len(values) > 4 * k:
        values_k = np.partition(values, len(values) - k)[len(values) - k]
        return np.flatnonzero((values >= values_k) & ((values > 0) | (not above_zero)))
    return np.flatnonzero(values > 0) if above_zero else np.arange(len(values))


def tail_probabilities(values: Floats, ordered: Floats) -> NDArray[np.float64]:
    """Share of images with at least each value; `ordered`: the unit's values over all N images, rising."""
    reached = len(ordered) - np.searchsorted(ordered, values, side="left")
    return np.asarray(reached / len(ordered), np.float64)


def tail_length(images: int) -> int:
    """The most images that can be in a unit's tail."""
    return max(TAIL_MIN_IMAGES, int(TAIL_MAX_P * images + 1e-9))


def quantiles(ordered: Floats) -> dict[str, Floats]:
    """For each share p the smallest value that p of the images do not exceed. ordered: [N, C], rising."""
    n = len(ordered)
    return {name: ordered[max(int(np.ceil(p * n - 1e-9)), 1) - 1] for name, p in QUANTILES.items()}


def class_means(values: Floats, classes: NDArray[np.int64], count: int) -> NDArray[np.float64]:
    """Mean of each class's rows: values [N, C], classes [N] (-1: none) -> float64 [count, C]; NaN where empty."""
    means = np.full((count, values.shape[1]), np.nan)
    order = np.argsort(classes, kind="stable")
    present, first = np.unique(classes[order], return_index=True)
    if len(present):
        sizes = np.diff(np.append(first, len(order)))
        found = np.add.reduceat(values[order].astype(np.float64), first, axis=0) / sizes[:, None]
        means[present[present >= 0]] = found[present >= 0]
    return means


def auc(values: Floats, classes: NDArray[np.int64], sizes: NDArray[np.int64]) -> NDArray[np.float64]:
    """Area under ROC of each class against the other labelled images, ties half (Mann-Whitney).

    values [N] of labelled images, classes [N] from 0, sizes [K] images a class -> float64 [K]; NaN under 10 images.
    """
    order = np.argsort(values)
    ordered = values[order]
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]])[: len(ordered)])
    ends = np.append(starts[1:], len(ordered))
    ranks = np.repeat((starts + ends + 1) / 2, ends - starts)  # ties share the mean of their ranks, from 1
    sums = np.bincount(classes[order], weights=ranks, minlength=len(sizes))
    others = len(values) - sizes
    usable = (sizes >= FEWEST_OF_CLASS) & (others > 0)
    area = np.full(len(sizes), np.nan)
    wins = sums - sizes * (sizes + 1) / 2
    np.divide(wins, sizes * others, out=area, where=usable)
    return area


def selectivity(means: NDArray[np.float64], sizes: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Class selectivity index (Morcos et al. 2018) and the row of the best class, over classes of 10 images or more.

    means [K, C], sizes [K] -> float64 [C] (NaN under two such classes, or where nothing fires), int64 [C] (-1: none).
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
