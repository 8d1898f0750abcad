"""Pearson correlation of a layer's units over their per-image maxima."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray

ROWS = 1024  # images per step


def correlations(
    rows: Iterable[NDArray[np.float32]], images: int, mean: NDArray[np.float64], sd: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the correlation matrix of C units, float64 [C, C].

    rows: the values in pieces [n, C]; images: their number over all pieces; mean, sd: float64 [C].

    A unit whose deviation is 0 has correlation 0 with every unit. Standardized values are rounded to multiples of a
    power of two that is large enough for every sum of products to be exact in float64. So the order in which images are
    stored changes no bit. With 1.28 million images the step is 2^-15, which moves a correlation by 1e-8.
    """
    grid = 2.0 ** ((52 - int(np.ceil(np.log2(max(images, 2))))) // 2)
    scale = torch.from_numpy(np.divide(1, sd, out=np.zeros_like(sd), where=sd > 0))
    centre = torch.from_numpy(mean)
    gram = torch.zeros((len(mean), len(mean)), dtype=torch.float64)
    with one_thread():
        for piece in _regrouped(rows, ROWS):
            z = (torch.from_numpy(piece).double() - centre) * scale
            z = (z * grid).round_()
            gram.addmm_(z.T, z)
    return np.clip(gram.numpy() / (max(images, 1) * grid * grid), -1, 1)


@contextmanager
def one_thread() -> Iterator[None]:
    """Make torch compute on one thread inside this context, so that the number of cores changes no bit."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _regrouped(rows: Iterable[NDArray[np.float32]], size: int) -> Iterable[NDArray[np.float32]]:
    """Yield the same rows in pieces of `size`, whatever the sizes of the input's pieces; the last may be shorter."""
    kept: list[NDArray[np.float32]] = []
    held = 0
    for piece in rows:
        start = 0
        while start < len(piece):
            kept.append(piece[start : start + size - held])
            start, held = start + len(kept[-1]), held + len(kept[-1])
            if held == size:
                yield np.concatenate(kept)
                kept, held = [], 0
    if held:
        yield np.concatenate(kept)


def nearest(
    matrix: NDArray[np.float64], alive: NDArray[np.bool_], k: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return pairs (channel, other): the k living units that correlate most with each living unit.

    Both arrays have k entries per living unit, the highest correlation first and ties in the order of channels.
    """
    living = np.flatnonzero(alive)
    if len(living) < 2:
        nothing = np.zeros(0, np.int64)
        return nothing, nothing
    part = matrix[np.ix_(living, living)].copy()
    np.fill_diagonal(part, -np.inf)
    k = min(k, len(living) - 1)
    least = -np.partition(-part, k - 1, axis=1)[
        :, k - 1
    ]  # the k-th highest of each row: few values reach it, even with ties
    order = np.empty((len(living), k), np.int64)
    for row, values in enumerate(part):
        near = np.flatnonzero(values >= least[row])
        order[row] = near[np.argsort(-values[near], kind="stable")][:k]
    return np.repeat(living, k), living[order].ravel()
