"""Tail codes: one byte that places a value in its unit's own distribution over images.

`code = floor(-log2(tail_p) * 255 / log2 N)` for layers that are never negative: 0 for the least (and for zero), 255 for
the value only one image reaches. Signed layers use both ends: 96..255 for the upper half, 95..0 for the lower.
`edges[c]` is the smallest value whose code is at least c, so `code(v)` is the last c with `edges[c] <= v`, and the
number of images with a code >= c is exact: tail probabilities are exact at edges.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

CODES = 256
CENTRE = 96  # signed layers: the first code of the upper half

Floats = NDArray[np.float32]


def edges(values: Floats, signed: bool) -> Floats:
    """Code edges of each unit.

    values: float32 [N, C], one value an image and unit, finite. Returns float32 [C, 256], rising; +inf where no image
    reaches a code; edges[:, 0] is -inf.
    """
    return edges_of_sorted(np.sort(values, axis=0), signed)


def edges_of_sorted(ordered: Floats, signed: bool) -> Floats:
    """The same from columns already sorted upwards."""
    n, channels = ordered.shape
    if n == 0:
        return np.full((channels, CODES), np.inf, np.float32)
    edge = np.full((CODES, channels), -np.inf, np.float32)
    above = _above(ordered)
    upper_from = CENTRE if signed else 1
    for code in range(upper_from, CODES):
        edge[code] = _reached_by_at_most(ordered, above, _upper_count(n, code, signed))
    if signed:
        for code in range(1, CENTRE):
            edge[code] = ordered[_lower_count(n, code) - 1]
        edge[1:CENTRE] = np.minimum(edge[1:CENTRE], edge[CENTRE])
    return np.ascontiguousarray(edge.T)


def encode(values: Floats, edge: Floats) -> NDArray[np.uint8]:
    """Codes of values: float32 [N, C] and edges [C, 256] -> uint8 [N, C]."""
    codes = np.empty(values.shape, np.uint8)
    for channel in range(values.shape[1]):
        codes[:, channel] = np.searchsorted(edge[channel], values[:, channel], side="right") - 1
    return codes


def counts_and_means(values: Floats, codes: NDArray[np.uint8]) -> tuple[NDArray[np.int64], Floats]:
    """How many images have each code, and the mean of their values: int64 and float32 [C, 256]; 0 where none has."""
    channels = values.shape[1]
    counts = np.zeros((channels, CODES), np.int64)
    means = np.zeros((channels, CODES), np.float32)
    for channel in range(channels):
        count = np.bincount(codes[:, channel], minlength=CODES)
        total = np.bincount(codes[:, channel], weights=values[:, channel].astype(np.float64), minlength=CODES)
        counts[channel] = count
        means[channel] = np.divide(total, count, out=np.zeros(CODES), where=count > 0)
    return counts, means


def reaching(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Images whose code is at least c: int64 [C, 256] from the counts [C, 256]."""
    return np.ascontiguousarray(np.cumsum(counts[:, ::-1], axis=1)[:, ::-1])


def tail_probability(values: Floats, edge: Floats, counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Where values of a picture never scanned stand: (1 + images that reach the value's code edge) / (N + 1).

    values: float32 [C] of C units, edges and counts [C, 256]. float64 [C].
    """
    code = encode(values[None], edge)[0]
    reached = reaching(counts)[np.arange(len(values)), code]
    probability: NDArray[np.float64] = (1 + reached) / (1 + counts.sum(axis=1))
    return probability


def _upper_count(n: int, code: int, signed: bool) -> int:
    """The most images that may reach a value of this code: the largest t whose own code is at least `code`."""
    top, first = (n / 2, CENTRE) if signed else (float(n), 0)
    steps = CODES - 1 - first
    if top <= 1:
        return 0 if top < 1 or code > first else 1
    count = int(top ** (1 - (code - first) / steps) + 1e-9)
    return max(count, 1)


def _lower_count(n: int, code: int) -> int:
    """Images at or below a value that has at least this code, in the lower half of a signed layer."""
    top = n / 2
    if top <= 1:
        return 1
    return min(int(top ** (1 - (CENTRE - code) / (CENTRE - 1)) + 1e-9) + 1, n)


def _above(ordered: Floats) -> NDArray[np.int32]:
    """For each entry of rising columns the row of the next larger value; N where there is none. int32 [N, C]."""
    n = len(ordered)
    rows = np.arange(1, n, dtype=np.int32)[:, None]
    found = np.full(ordered.shape, n, np.int32)
    found[:-1] = np.where(ordered[1:] > ordered[:-1], rows, n)
    return np.minimum.accumulate(found[::-1], axis=0)[::-1]


def _reached_by_at_most(ordered: Floats, above: NDArray[np.int32], count: int) -> Floats:
    """The smallest value that at most `count` images reach; +inf where even the largest is shared by more.

    ordered: float32 [N, C], rising down each column; above: `_above(ordered)`.
    """
    n, channels = ordered.shape
    if count <= 0:
        return np.full(channels, np.inf, np.float32)
    if count >= n:
        return np.array(ordered[0])
    candidate, below = ordered[n - count], ordered[n - count - 1]
    row = np.where(candidate == below, above[n - count], n - count)  # a tie across the cut: the next larger value
    found: Floats = np.where(row < n, ordered[np.minimum(row, n - 1), np.arange(channels)], np.inf).astype(np.float32)
    return found
