"""Tail codes: one byte that places a value in its unit's own distribution over images.

Codes rise with values. `edges[c]` is the smallest value whose code is at least c, so `code(v)` is the last c with
`edges[c] <= v`, and the number of images with a code >= c is exact: tail probabilities are exact at edges. In layers
that are never negative code 0 is zero and nothing else.

Where a unit has no more than 255 distinct values, each has its own code and nothing is lost. Else two grids are laid
over each other: steps of the tail probability, so many an octave up to the one image nobody reaches, and steps of the
value, a share of the unit's standard deviation. The first alone leaves a handful of codes for everything below the
upper quartile, which is where a saturating unit varies: its correlations were off by tenths.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

CODES = 256
TAIL_MIN_IMAGES = 20  # a unit's first images are in `tail` whatever their tail probability
TAIL_MAX_P = 0.01  # every value with tail_p up to this is in `tail`, exactly
SAMPLE = 4096  # images over which a unit is compared with all others first
_LOWEST = 2.0**-4  # shares of images at the lower end with steps of their own, one an octave
_BULK_FROM = 2.0**-10  # steps of the value begin above this share of the images

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Resolution:
    """How fine codes are. `octave`: steps while the tail probability halves; `step`: of the value, in deviations, with
    many images (with N fewer, `few` * sqrt(N) where that is less: rounding errors average out over images)."""

    octave: float
    step: float
    few: float = 5e-4

    def step_of(self, images: int) -> float:
        return min(self.step, self.few * math.sqrt(images))


MAX = Resolution(octave=6, step=0.15)  # correlations come from it
MEAN = Resolution(octave=3, step=0.5, few=5e-3)


def edges(values: Floats, signed: bool, resolution: Resolution = MAX) -> Floats:
    """Code edges of each unit.

    values: float32 [N, C], one value an image and unit, finite. Returns float32 [C, 256], rising; +inf where no image
    reaches a code; edges[:, 0] is -inf.
    """
    return edges_of_sorted(np.sort(values, axis=0), signed, resolution)


def edges_of_sorted(ordered: Floats, signed: bool, resolution: Resolution = MAX) -> Floats:
    """The same from columns already sorted upwards."""
    found = np.full((ordered.shape[1], CODES), np.inf, np.float32)
    if len(ordered):
        for channel, column in enumerate(np.ascontiguousarray(ordered.T)):
            edge = _edges_of_unit(column, signed, resolution)
            found[channel, 1 : 1 + len(edge)] = edge
            found[channel, 0] = -np.inf
    return found


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


def sample(images: int) -> NDArray[np.int64]:
    """Which of the accepted images the store's sample of the record holds: their places, evenly spread, int64 [n]."""
    return np.unique(np.linspace(0, images - 1, min(SAMPLE, images)).astype(np.int64))


def moments(counts: NDArray[np.int64], means: Floats) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and standard deviation over images of decoded values, float64 [C], from counts and means [C, 256]."""
    n = np.maximum(counts.sum(axis=1), 1)
    mean = (counts * means.astype(np.float64)).sum(1) / n
    return mean, np.sqrt((counts * (means - mean[:, None]) ** 2).sum(1) / n)


def standardized(counts: NDArray[np.int64], means: Floats) -> Floats:
    """(decoded value - mean) / deviation of each unit and code, float32 [C, 256]; 0 for a unit that never varies."""
    mean, deviation = (moment[:, None] for moment in moments(counts, means))
    z = np.divide(means - mean, deviation, out=np.zeros(means.shape), where=deviation > 0)
    return z.astype(np.float32)


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


def _edges_of_unit(ordered: Floats, signed: bool, resolution: Resolution) -> Floats:
    """Edges of codes 1, 2, ... of one unit, each reached by fewer images than the one before. ordered: [N], rising."""
    zeros = 0 if signed else int(np.searchsorted(ordered, 0, side="right"))
    kept = ordered[zeros:]  # what gets codes beside the zeros'
    if not len(kept):
        return kept
    starts = np.flatnonzero(np.concatenate([[True], kept[1:] != kept[:-1]]))
    if len(starts) > CODES - 1:
        first = kept[:1]
        tails = np.concatenate([first, _upper_edges(ordered, resolution.octave), _lower_edges(kept)])
        steps = _value_edges(ordered, kept, resolution, CODES - 1 - len(np.unique(tails)))
        starts = np.unique(np.searchsorted(kept, np.concatenate([tails, steps]), side="left"))
        starts = starts[starts < len(kept)]
    found = kept[starts]
    return found[1:] if signed else found  # a signed unit's least value has code 0


def _upper_edges(ordered: Floats, octave: float) -> Floats:
    """The smallest values that at most t images reach, for t from half of them down to 1 in steps of an octave's part.

    None for a t less than the number of images that share the largest value.
    """
    n = len(ordered)
    powers = np.arange(octave, np.log2(n) * octave + 1)
    count = np.unique(np.maximum((n * 2.0 ** (-powers / octave) + 1e-9).astype(np.int64), 1))
    tied = ordered[n - count] == ordered[n - count - 1]  # a tie across the cut: the next larger value
    place = np.where(tied, np.searchsorted(ordered, ordered[n - count], side="right"), n - count)
    return ordered[place[place < n]]


def _lower_edges(kept: Floats) -> Floats:
    """The values that 1, 2, 4, ... images lie below, as far as a sixteenth of them."""
    below = 2 ** np.arange(0, max(int(np.log2(max(_LOWEST * len(kept), 1))) + 1, 1))
    return kept[below[below < len(kept)]]


def _value_edges(ordered: Floats, kept: Floats, resolution: Resolution, most: int) -> Floats:
    """Equal steps of the value from the lower end up, at most so many."""
    step = resolution.step_of(len(ordered)) * float(ordered.std(dtype=np.float64))
    low, high = float(kept[int(_BULK_FROM * len(kept))]), float(kept[-1])
    count = min(most, int((high - low) / step) if step > 0 else 0)
    return (low + step * np.arange(1, count + 1)).astype(np.float32)
