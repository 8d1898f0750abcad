"""Sums that do not depend on how the images were cut into shards: double-double addition.

Each sum is an unevaluated pair of float64 (Knuth's TwoSum), some 106 bits: after rounding, the same for any grouping.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

Doubles = NDArray[np.float64]


@dataclass(frozen=True)
class Pair:
    """high + low, float64 arrays of one shape."""

    high: Doubles
    low: Doubles


def zero(units: int) -> Pair:
    return Pair(np.zeros(units), np.zeros(units))


def add(a: Pair, b: Pair) -> Pair:
    total = a.high + b.high
    part = total - a.high
    error = (a.high - (total - part)) + (b.high - part) + a.low + b.low
    high = total + error
    return Pair(high, error - (high - total))


def add_rows_into(sums: Pair, rows: Doubles) -> None:
    """Adds rows [n, units] to `sums` in place, one after the other: `add`, compiled."""
    _add_rows(sums.high, sums.low, rows)


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _add_rows(high: Doubles, low: Doubles, rows: Doubles) -> None:
    for row in range(rows.shape[0]):
        new = rows[row]
        for unit in range(len(high)):
            a, b = high[unit], new[unit]
            total = a + b
            part = total - a
            error = (a - (total - part)) + (b - part) + low[unit]
            high[unit] = total + error
            low[unit] = error - (high[unit] - total)


def mean_and_variance(total: Pair, square: Pair, count: int) -> tuple[Doubles, Doubles]:
    """Mean and population variance of `count` values from their sum and sum of squares: float64 [units]."""
    if count == 0:
        nothing = np.zeros_like(total.high)
        return nothing, nothing
    mean = (total.high + total.low) / count
    # square - total^2 / count, with the product taken exactly (its own rounding error from Dekker's split)
    product = total.high * mean
    error = _product_error(total.high, mean, product) + total.low * mean
    spread = add(square, Pair(-product, -error))
    return mean, np.maximum((spread.high + spread.low) / count, 0)


def _product_error(a: Doubles, b: Doubles, product: Doubles) -> Doubles:
    split = float(2**27 + 1)
    a_high = a * split - (a * split - a)
    b_high = b * split - (b * split - b)
    a_low, b_low = a - a_high, b - b_high
    return ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low
