"""Which units of a layer go together: Pearson correlation over per-image maxima."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray

ROWS = 1024  # images a step


def correlations(
    rows: Iterable[NDArray[np.float32]], images: int, mean: NDArray[np.float64], sd: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Correlation matrix float64 [C, C] from values of so many images in pieces [n, C], each unit's mean and deviation.

    A unit whose deviation is 0 correlates 0 with all. Standardized values are rounded to a power of two at which every
    sum of products is exact in float64 (at 1.28 million images 2^-15, which moves a correlation by 1e-8): the order in
    which images are stored changes no bit.
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
    """Torch computes on one thread here: the same bits however many the machine has."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _regrouped(rows: Iterable[NDArray[np.float32]], size: int) -> Iterable[NDArray[np.float32]]:
    """The same rows in pieces of `size`, whatever pieces they came in."""
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
    """Pairs (channel, other) of each living unit's k most correlated living others, ties by channel; rank order."""
    living = np.flatnonzero(alive)
    if len(living) < 2:
        nothing = np.zeros(0, np.int64)
        return nothing, nothing
    part = matrix[np.ix_(living, living)].copy()
    np.fill_diagonal(part, -np.inf)
    k = min(k, len(living) - 1)
    least = -np.partition(-part, k - 1, axis=1)[:, k - 1]  # each row's k-th: what reaches it is few, ties included
    order = np.empty((len(living), k), np.int64)
    for row, values in enumerate(part):
        near = np.flatnonzero(values >= least[row])
        order[row] = near[np.argsort(-values[near], kind="stable")][:k]
    return np.repeat(living, k), living[order].ravel()
