"""Tail codes: one byte per value, which says where the value stands in its unit's distribution over images.

Codes rise with values. `edges[c]` is the smallest value whose code is at least c, so `code(v)` is the last c with
`edges[c] <= v`. The number of images with a code >= c is therefore exact, and so are tail probabilities at edges. In
layers that are never negative, code 0 means zero and nothing else.

If a unit has no more than 255 distinct values, each has its own code and nothing is lost. Otherwise the edges come
from two grids. One has steps of the tail probability, a fixed number per octave, up to the single strongest image. The
other has equal steps of the value, each a share of the unit's standard deviation. The first grid alone leaves only a
handful of codes below the upper quartile, which is where a saturating unit varies, and correlations computed from such
codes were wrong by tenths. Codes that would still have many images are divided, which happens if a few large values
make the standard deviation much larger than most differences. With few images the steps would be more than the codes:
they are wider then, and codes that stay empty halve the widest others.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

CODES = 256
TAIL_MIN_IMAGES = 20  # so many of a unit's strongest images are in `tail`, whatever their tail probability
QUANTILES, QUANTILE_IMAGES = (0.99, 0.9, 0.5, 0.1), 6  # what the page shows of a unit's range, if no config says other
TAIL_MAX_P = 0.01  # every value whose tail_p is at most this is in `tail`, exactly
SAMPLE = 4096  # images in the sample on which a unit is first compared with all others
_LOWEST = 2.0**-4  # the lowest share of the images, which has steps of its own: one per octave
_SHARES = 32  # no code has more than this part of a unit's images, unless they have the same value
_HALVINGS = 3  # rounds in which codes that are left halve the widest ones
_BULK_FROM = 2.0**-10  # equal steps of the value begin above this share of the images

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Resolution:
    """How fine the codes are.

    `octave` is the number of steps in which the tail probability halves. `step` is the step of the value, in standard
    deviations. With few images the rounding errors of codes average out less, so the step for N images is the smaller
    of `step` and `few` * sqrt(N), or what 255 codes allow.
    """

    octave: float
    step: float
    few: float = 5e-4

    def step_of(self, images: int) -> float:
        return min(self.step, self.few * math.sqrt(images))


MAX = Resolution(octave=6, step=0.15)  # of the maxima, from which correlations are computed
MEAN = Resolution(octave=3, step=0.5, few=5e-3)


def edges(values: Floats, signed: bool, resolution: Resolution = MAX) -> Floats:
    """Compute the code edges of each unit.

    values: float32 [N, C], one finite value per image and unit. Returns float32 [C, 256], rising. An edge is +inf if no
    image reaches its code; edges[:, 0] is -inf.
    """
    return edges_of_sorted(np.sort(values, axis=0), signed, resolution)


def edges_of_sorted(ordered: Floats, signed: bool, resolution: Resolution = MAX) -> Floats:
    """Compute the same edges from columns that are already sorted in ascending order."""
    edge_rows = np.full((ordered.shape[1], CODES), np.inf, np.float32)
    if len(ordered):
        for channel, column in enumerate(np.ascontiguousarray(ordered.T)):
            edge = _edges_of_unit(column, signed, resolution)
            edge_rows[channel, 1 : 1 + len(edge)] = edge
            edge_rows[channel, 0] = -np.inf
    return edge_rows


def encode(values: Floats, edge: Floats) -> NDArray[np.uint8]:
    """Return the codes, uint8 [N, C], of float32 values [N, C] under edges [C, 256]."""
    codes = np.empty(values.shape, np.uint8)
    for channel in range(values.shape[1]):
        codes[:, channel] = np.searchsorted(edge[channel], values[:, channel], side="right") - 1
    return codes


def counts_and_means(values: Floats, codes: NDArray[np.uint8]) -> tuple[NDArray[np.int64], Floats]:
    """Count the images that have each code, and average their values.

    Returns int64 and float32, both [C, 256]; both are 0 for a code that no image has.
    """
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
    """Return which of the accepted images are in the store's sample of the record: int64 [n], evenly spread."""
    return np.unique(np.linspace(0, images - 1, min(SAMPLE, images)).astype(np.int64))


def around_quantiles(code: NDArray[np.uint8], quantiles: Sequence[float], k: int) -> NDArray[np.int64]:
    """Return which images lie around quantiles of a unit: int64 [quantiles, k] of positions in `code`, [images].

    Images are in the order (code falling, position), and the k in the middle of which a quantile lies are returned, or
    all if there are fewer. The codes alone decide, so that the pipeline keeps the pictures that a question names.
    """
    k = min(k, len(code))
    order = np.argsort(255 - code, kind="stable")
    starts = [min(max(round((1 - q) * (len(code) - 1)) - k // 2, 0), len(code) - k) for q in quantiles]
    return np.stack([order[start : start + k] for start in starts]).astype(np.int64)


def moments(counts: NDArray[np.int64], means: Floats) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the mean and standard deviation of decoded values over images, from counts and means [C, 256].

    Both are float64 [C]. The standard deviation is that of the population.
    """
    n = np.maximum(counts.sum(axis=1), 1)
    mean = (counts * means.astype(np.float64)).sum(1) / n
    return mean, np.sqrt((counts * (means - mean[:, None]) ** 2).sum(1) / n)


def standardized(counts: NDArray[np.int64], means: Floats) -> Floats:
    """Return (decoded value - mean) / standard deviation for each unit and code: float32 [C, 256].

    The rows of units that never vary are 0.
    """
    mean, deviation = (moment[:, None] for moment in moments(counts, means))
    z = np.divide(means - mean, deviation, out=np.zeros(means.shape), where=deviation > 0)
    return z.astype(np.float32)


def reaching(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return how many images have a code of at least c: int64 [C, 256], from the counts [C, 256]."""
    return np.ascontiguousarray(np.cumsum(counts[:, ::-1], axis=1)[:, ::-1])


def images_reaching(
    values: Floats, edge: Floats, counts: NDArray[np.int64], means: Floats, reached: NDArray[np.int64] | None = None
) -> NDArray[np.int64]:
    """Estimate how many images have at least a value, one value per unit: float32 [C] -> int64 [C].

    edge, counts and means: [C, 256]. The images of higher codes are counted exactly. Of the m images with the value's
    own code, the least is at the code's edge, and the others are taken to be evenly spread above it so that the mean of
    the code is right. So the result is exact at edges and for codes with one or two images or one value, and never off
    by more than m - 2. `reached` is `reaching(counts)`, if it is known already.
    """
    reached = reaching(counts) if reached is None else reached
    rows = np.arange(len(values))
    code = encode(values[None], edge)[0].astype(np.int64)
    least, mean, m = edge[rows, code], means[rows, code].astype(np.float64), counts[rows, code]
    above = reached[rows, code] - m
    low = np.where(np.isfinite(least), least, mean)  # of code 0 only the mean is known: its images have one value
    others = np.divide(m * mean - low, m - 1, out=mean.copy(), where=m > 1)  # the mean of all but the least
    with np.errstate(divide="ignore", invalid="ignore"):
        place = (values - low) * m / (2 * (others - low))  # the k-th of the others is at place k, for k = 1 ... m - 1
    inside = m - np.ceil(np.clip(np.nan_to_num(place, posinf=np.inf), 1, m))
    estimated: NDArray[np.int64] = above + np.where(values <= low, m, inside).astype(np.int64)
    return estimated


def tail_probability(values: Floats, edge: Floats, counts: NDArray[np.int64], means: Floats) -> NDArray[np.float64]:
    """Return the tail probability of each value of a picture that was not scanned.

    It is (1 + the number of images that have at least the value) / (N + 1), with `images_reaching`. values: float32
    [C], one per unit; edge, counts and means: [C, 256]. Returns float64 [C].
    """
    reached = images_reaching(values, edge, counts, means)
    probability: NDArray[np.float64] = (1 + reached) / (1 + counts.sum(axis=1))
    return probability


def _edges_of_unit(ordered: Floats, signed: bool, resolution: Resolution) -> Floats:
    """Return the edges of codes 1, 2, ... of one unit; fewer images reach each edge than the one before it.

    ordered: the unit's values [N], ascending.
    """
    zeros = 0 if signed else int(np.searchsorted(ordered, 0, side="right"))
    kept = ordered[zeros:]  # the values that get codes other than the zeros' code 0
    if not len(kept):
        return kept
    starts = np.flatnonzero(np.concatenate([[True], kept[1:] != kept[:-1]]))
    if len(starts) > CODES - 1:
        first = kept[:1]
        tails = np.maximum(
            np.concatenate([first, _upper_edges(ordered, resolution.octave), _lower_edges(kept)]), first
        )  # not the zeros
        steps, enough = _value_edges(ordered, kept, resolution, CODES - 1 - _SHARES - len(np.unique(tails)))
        starts = np.unique(np.searchsorted(kept, np.concatenate([tails, steps]), side="left"))
        starts = _divided(kept, starts[starts < len(kept)])
        starts = starts if enough else _halved(kept, starts)
    unit_edges = kept[starts]
    return unit_edges[1:] if signed else unit_edges  # a signed unit's least value has code 0


def _divided(kept: Floats, starts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Divide codes that have more than 1 / _SHARES of the values, but never a value that several images share.

    starts: where codes begin in `kept`, rising.
    """
    share = -(-len(kept) // _SHARES)
    sizes = np.diff(starts, append=len(kept))
    more = [
        np.arange(first + share, first + size, share) for first, size in zip(starts, sizes, strict=True) if size > share
    ]
    if not more:
        return starts
    whole = np.searchsorted(kept, kept[np.concatenate(more)], side="left")
    return np.unique(np.concatenate([starts, whole]))


def _halved(kept: Floats, starts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Halve the codes that span the widest range of values, as long as codes are left, in _HALVINGS rounds."""
    for _ in range(_HALVINGS):
        low, high = kept[starts], kept[np.append(starts[1:], len(kept)) - 1]
        widest = np.argsort(low - high, kind="stable")[: max(CODES - 1 - len(starts), 0)]
        middle = (low + (high - low) / 2)[widest[(high > low)[widest]]]
        starts = np.unique(np.concatenate([starts, np.searchsorted(kept, middle, side="right")]))
    return starts


def _upper_edges(ordered: Floats, octave: float) -> Floats:
    """Return the t-th largest values, for t from half of the images down to 1, with `octave` values of t per halving.

    Where the next smaller value is the same, also the next larger value.
    """
    n = len(ordered)
    count = _tail_counts(n, octave)
    cut = ordered[n - count]
    # A value that many images share is tied across the cut. It gets a code of its own: an edge at it, and one above.
    above = np.searchsorted(ordered, cut[cut == ordered[n - count - 1]], side="right")
    return np.concatenate([cut, ordered[above[above < n]]])


def _tail_counts(n: int, octave: float) -> NDArray[np.int64]:
    """Return the numbers of images that edges of the upper half are for, rising from 1."""
    powers = np.arange(octave, np.log2(n) * octave + 1)
    return np.unique(np.maximum((n * 2.0 ** (-powers / octave) + 1e-9).astype(np.int64), 1))


def _lower_edges(kept: Floats) -> Floats:
    """Return the values below which 1, 2, 4, ... images lie, up to a sixteenth of the images."""
    below = 2 ** np.arange(0, max(int(np.log2(max(_LOWEST * len(kept), 1))) + 1, 1))
    return kept[below[below < len(kept)]]


def _value_edges(ordered: Floats, kept: Floats, resolution: Resolution, most: int) -> tuple[Floats, bool]:
    """Return equal steps of the value, at most `most`, from the lower end to where each image has an edge of its own.

    Also returns whether `most` are enough. If not, the steps are wider than the resolution says.
    """
    counts = _tail_counts(len(ordered), resolution.octave)
    alone = int((counts == np.arange(1, len(counts) + 1)).sum())
    low, high = float(kept[int(_BULK_FROM * len(kept))]), float(kept[max(len(kept) - 1 - alone, 0)])
    step = resolution.step_of(len(ordered)) * float(ordered.std(dtype=np.float64))
    if most < 1 or not (step > 0 and high > low):
        return kept[:0], True
    wider = max(step, (high - low) / most)
    return (low + wider * np.arange(1, round((high - low) / wider) + 1)[:most]).astype(np.float32), wider == step
