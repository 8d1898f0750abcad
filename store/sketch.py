"""Mergeable sketches: an integer histogram over the float16 pattern of a value.

The key is the float16 bit pattern >> 3 (128 steps an octave); signed layers flip the sign so that keys rise with
values. Merging is integer addition: exact, and in any order.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SHIFT = 3


@dataclass(frozen=True)
class Sketch:
    """Histograms of several units, sparse: unit c has bins[offsets[c]:offsets[c+1]] with these counts."""

    offsets: NDArray[np.int64]
    bins: NDArray[np.uint16]
    counts: NDArray[np.int64]


def keys(values: NDArray[np.float32], signed: bool) -> NDArray[np.uint16]:
    """Histogram bins: rising with the value. Values beyond float16 go to the last finite bin."""
    clipped = np.clip(values, -65504, 65504) + np.float32(0)  # -0 becomes +0
    bits = clipped.astype(np.float16).view(np.uint16)
    if signed:
        negative = (bits & 0x8000) != 0
        bits = np.where(negative, ~bits, bits | 0x8000).astype(np.uint16)
    return (bits >> SHIFT).astype(np.uint16)


def lower_bounds(bins: NDArray[np.uint16], signed: bool) -> NDArray[np.float32]:
    """The least float16 magnitude pattern in each bin, as float32: the inverse of `keys`, up to the bin's width."""
    bits = (bins.astype(np.uint16) << SHIFT).astype(np.uint16)
    if signed:
        bits = np.where((bits & 0x8000) != 0, bits & 0x7FFF, ~bits).astype(np.uint16)
    return bits.view(np.float16).astype(np.float32)


def build(values: NDArray[np.float32], signed: bool) -> Sketch:
    """values: float32 [N, C] -> the sketch of each column."""
    found = [np.unique(column, return_counts=True) for column in keys(values, signed).T]
    return _pack(found)


def merge(a: Sketch, b: Sketch) -> Sketch:
    found = []
    for unit in range(len(a.offsets) - 1):
        one, two = (slice(s.offsets[unit], s.offsets[unit + 1]) for s in (a, b))
        bins, place = np.unique(np.concatenate([a.bins[one], b.bins[two]]), return_inverse=True)
        counts = np.zeros(len(bins), np.int64)
        np.add.at(counts, place, np.concatenate([a.counts[one], b.counts[two]]))
        found.append((bins, counts))
    return _pack(found)


def _pack(found: list[tuple[NDArray[np.uint16], NDArray[np.int64]]]) -> Sketch:
    offsets = np.cumsum([0, *(len(bins) for bins, _ in found)]).astype(np.int64)
    if not found:
        return Sketch(offsets, np.zeros(0, np.uint16), np.zeros(0, np.int64))
    return Sketch(
        offsets, np.concatenate([b for b, _ in found]), np.concatenate([c for _, c in found]).astype(np.int64)
    )
