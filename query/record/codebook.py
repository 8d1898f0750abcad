"""What the tail codes of one layer stand for."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from store import codes

Statistic = Literal["max", "mean"]
Codes = NDArray[np.uint8]


class Codebook:
    """Turn the codes of one layer's spatial max, or spatial mean, back into values.

    All three arrays are [C, 256] and are read when they are first asked for: `edges` float32 is the least value of
    each code, `counts` int64 how many accepted images have it, `means` float32 the mean of the values that have it.
    """

    def __init__(self, read: Callable[[str, str], NDArray[Any]]) -> None:
        self._read = read

    @functools.cached_property
    def edges(self) -> NDArray[np.float32]:
        return self._read("edges", "float32")

    @functools.cached_property
    def counts(self) -> NDArray[np.int64]:
        counts: NDArray[np.int64] = np.maximum(self._read("counts", "int64"), 0)
        return counts

    @functools.cached_property
    def means(self) -> NDArray[np.float32]:
        return self._read("means", "float32")

    @functools.cached_property
    def reaching(self) -> NDArray[np.int64]:
        """How many images have at least each code, int64 [C, 256]."""
        return codes.reaching(self.counts)

    @functools.cached_property
    def n(self) -> int:
        """Accepted images."""
        return int(self.counts[0].sum()) if len(self.counts) else 0

    @functools.cached_property
    def tail_p(self) -> NDArray[np.float64]:
        """Share of images that reach each code, float64 [C, 256]. Exact at edges; never below a value's own share."""
        share: NDArray[np.float64] = self.reaching / max(self.n, 1)
        return share

    @functools.cached_property
    def moments(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Mean and standard deviation over images of the decoded values, float64 [C] each."""
        return codes.moments(self.counts, self.means)

    @functools.cached_property
    def standard(self) -> NDArray[np.float32]:
        """The z of the decoded value of each code, float32 [C, 256]; 0 for a unit that never varies."""
        return codes.standardized(self.counts, self.means)

    def images_reaching(self, values: NDArray[np.float32]) -> NDArray[np.int64]:
        """Estimate how many images have at least a value, for one value per unit: float32 [C] -> int64 [C]."""
        return codes.images_reaching(values, self.edges, self.counts, self.means, self.reaching)
