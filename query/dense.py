"""The dense record: a tail code for every unit and image, and the books that turn codes back into values."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from store import codes, hdf5, layout

from .run import Layer, Run

Statistic = Literal["max", "mean"]
Codes = NDArray[np.uint8]


@dataclass(frozen=True)
class Codebook:
    """What the codes of one layer stand for, for the spatial max or the spatial mean.

    edges float32, counts int64, means float32, all [C, 256]: the least value of a code, how many accepted images have
    it, the mean of their values.
    """

    edges: NDArray[np.float32]
    counts: NDArray[np.int64]
    means: NDArray[np.float32]

    @functools.cached_property
    def reaching(self) -> NDArray[np.int64]:
        return codes.reaching(self.counts)

    @functools.cached_property
    def n(self) -> int:
        return int(self.counts[0].sum()) if len(self.counts) else 0

    @functools.cached_property
    def tail_p(self) -> NDArray[np.float64]:
        """Share of images that reach each code, [C, 256]: exact at edges, and never below a value's own share."""
        share: NDArray[np.float64] = self.reaching / max(self.n, 1)
        return share

    def moments(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Mean and standard deviation over images of the decoded values, float64 [C]."""
        mean = (self.counts * self.means).sum(1) / max(self.n, 1)
        variance = (self.counts * (self.means - mean[:, None]) ** 2).sum(1) / max(self.n, 1)
        return mean, np.sqrt(variance)

    def codes_of(self, values: NDArray[np.float32]) -> Codes:
        """The code of one value for each unit: float32 [C] -> uint8 [C]."""
        found: Codes = codes.encode(values[None], self.edges)[0]
        return found


class Dense:
    """The dense record of one run. Codebooks are kept; rows and columns are read when asked."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self._books: dict[tuple[str, Statistic], Codebook] = {}

    def book(self, layer: Layer, statistic: Statistic) -> Codebook:
        return self._book(layer, statistic)

    def books(self, statistic: Statistic) -> list[Codebook]:
        """Codebooks of all layers, in order."""
        return [self._book(layer, statistic) for layer in self.run.layers]

    def image(self, image_id: int) -> dict[Statistic, Codes]:
        """Codes of one image over all units: uint8 [U] each."""
        block, row = divmod(image_id, layout.BLOCK)
        with hdf5.reading(self.run.array(layout.codes_by_image(self.run.name, block))) as file:
            return {"max": hdf5.dataset(file, "max")[row], "mean": hdf5.dataset(file, "mean")[row]}

    def unit(self, layer: Layer, channel: int) -> dict[Statistic, Codes]:
        """Codes of one unit over all images of the dataset, rejected ones too (code 0): uint8 [images] each."""
        with hdf5.reading(self.run.array(layout.codes_by_unit(self.run.name, layer.name))) as file:
            return {"max": hdf5.dataset(file, "max")[channel], "mean": hdf5.dataset(file, "mean")[channel]}

    def layer_maxima(self, layer: Layer, images: slice) -> NDArray[np.float32]:
        """Decoded maxima of a layer's units on a range of image ids: float32 [C, images]."""
        with hdf5.reading(self.run.array(layout.codes_by_unit(self.run.name, layer.name))) as file:
            block: Codes = hdf5.dataset(file, "max")[:, images]
        return np.take_along_axis(self.book(layer, "max").means, block.astype(np.intp), axis=1)

    def decode(self, units: NDArray[np.int64], found: Codes, statistic: Statistic) -> NDArray[np.float32]:
        """Values of these units' codes: the mean of each (unit, code). Reads only the layers concerned."""
        result = np.empty(len(units), np.float32)
        for layer, here in self._by_layer(units):
            result[here] = self.book(layer, statistic).means[units[here] - layer.start, found[here]]
        return result

    def decode_tail(self, units: NDArray[np.int64], found: Codes) -> NDArray[np.float64]:
        """tail_p of these units' codes for the max."""
        result = np.empty(len(units), np.float64)
        for layer, here in self._by_layer(units):
            result[here] = self.book(layer, "max").tail_p[units[here] - layer.start, found[here]]
        return result

    def _by_layer(self, units: NDArray[np.int64]) -> list[tuple[Layer, NDArray[np.intp]]]:
        """The layers of some units, each with where in `units` its units stand."""
        order = np.argsort(units, kind="stable")
        starts = np.array([layer.start for layer in self.run.layers] + [self.run.units])
        cuts = np.searchsorted(units[order], starts)
        return [(layer, order[a:b]) for layer, a, b in zip(self.run.layers, cuts[:-1], cuts[1:], strict=True) if b > a]

    def _book(self, layer: Layer, statistic: Statistic) -> Codebook:
        key = (layer.name, statistic)
        if key not in self._books:
            with hdf5.reading(self.run.array(layout.array(self.run.name, "codes"))) as file:
                parts = {
                    name: hdf5.dataset(file, f"{layer.name}/{statistic}/{name}")[()]
                    for name in ("edges", "counts", "means")
                }
            self._books[key] = Codebook(**parts)
        return self._books[key]
