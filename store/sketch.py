"""Mergeable sketches: an integer histogram over the float16 bit patterns of values.

The key is the float16 bit pattern >> 3, which gives 128 steps per octave. In signed layers, bits are flipped so that
keys rise with values. Merging adds integers, so it is exact and its order does not matter.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SHIFT = 3


@dataclass(frozen=True)
class Sketch:
    """Sparse histograms of several units.

    Unit c has the bins `bins[offsets[c]:offsets[c+1]]`, with the `counts` in the same range.
    """

    offsets: NDArray[np.int64]
    bins: NDArray[np.uint16]
    counts: NDArray[np.int64]


def keys(values: NDArray[np.float32], signed: bool) -> NDArray[np.uint16]:
    """Return the histogram bins of values; they rise with the value. Values beyond float16 get the last finite bin."""
    clipped = np.clip(values, -65504, 65504) + np.float32(0)  # -0 becomes +0
    bits = clipped.astype(np.float16).view(np.uint16)
    if signed:
        negative = (bits & 0x8000) != 0
        bits = np.where(negative, ~bits, bits | 0x8000).astype(np.uint16)
    return (bits >> SHIFT).astype(np.uint16)


def lower_bounds(bins: NDArray[np.uint16], signed: bool) -> NDArray[np.float32]:
    """Return the value of each bin's smallest bit pattern, as float32: the inverse of `keys`, up to the bin's width."""
    bits = (bins.astype(np.uint16) << SHIFT).astype(np.uint16)
    if signed:
        bits = np.where((bits & 0x8000) != 0, bits & 0x7FFF, ~bits).astype(np.uint16)
    return bits.view(np.float16).astype(np.float32)


def build(values: NDArray[np.float32], signed: bool) -> Sketch:
    """Build the sketch of each column of values, float32 [N, C]."""
    histograms = [np.unique(column, return_counts=True) for column in keys(values, signed).T]
    return _pack(histograms)


def merge(a: Sketch, b: Sketch) -> Sketch:
    histograms = []
    for unit in range(len(a.offsets) - 1):
        in_a, in_b = (slice(s.offsets[unit], s.offsets[unit + 1]) for s in (a, b))
        bins, index = np.unique(np.concatenate([a.bins[in_a], b.bins[in_b]]), return_inverse=True)
        counts = np.zeros(len(bins), np.int64)
        np.add.at(counts, index, np.concatenate([a.counts[in_a], b.counts[in_b]]))
        histograms.append((bins, counts))
    return _pack(histograms)


def _pack(histograms: list[tuple[NDArray[np.uint16], NDArray[np.int64]]]) -> Sketch:
    offsets = np.cumsum([0, *(len(bins) for bins, _ in histograms)]).astype(np.int64)
    if not histograms:
        return Sketch(offsets, np.zeros(0, np.uint16), np.zeros(0, np.int64))
    return Sketch(
        offsets,
        np.concatenate([b for b, _ in histograms]),
        np.concatenate([c for _, c in histograms]).astype(np.int64),
    )
