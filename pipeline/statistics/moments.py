"""Sums that do not depend on how the images were cut into shards, by double-double addition.

Each sum is an unevaluated pair of float64 numbers (Knuth's TwoSum), which holds some 106 bits. Rounded to float64, it
is the same for any grouping.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

Doubles = NDArray[np.float64]


@dataclass(frozen=True)
class Pair:
    """The unevaluated sum high + low of two float64 arrays of the same shape."""

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
    """Add rows [n, units] to `sums` in place, one after the other, as `add` does; this is compiled."""
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
    """Return mean and population variance, float64 [units], from the sum and sum of squares of `count` values."""
    if count == 0:
        nothing = np.zeros_like(total.high)
        return nothing, nothing
    mean = (total.high + total.low) / count
    # square - total^2 / count, with an exact product: Dekker's split gives its rounding error
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
