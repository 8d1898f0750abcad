"""The dense record: a tail code for every unit and image, and the books that turn codes back into values."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
from numpy.typing import NDArray

from query.record.run_tables import Layer, Run
from store import codes, hdf5, layout

Statistic = Literal["max", "mean"]
Codes = NDArray[np.uint8]
_AT_ONCE = 16 << 20  # codes of a layer read together
_OPEN_FILES = 64


class Codebook:
    """What the codes of one layer stand for, for the spatial max or the spatial mean. Arrays are read when asked for.

    edges float32, counts int64, means float32, all [C, 256]: the least value of a code, how many accepted images have
    it, the mean of their values.
    """

    def __init__(self, read: Callable[[str], NDArray[Any]]) -> None:
        self._read = read

    @functools.cached_property
    def edges(self) -> NDArray[np.float32]:
        return self._read("edges")

    @functools.cached_property
    def counts(self) -> NDArray[np.int64]:
        return self._read("counts")

    @functools.cached_property
    def means(self) -> NDArray[np.float32]:
        return self._read("means")

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

    @functools.cached_property
    def moments(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Mean and standard deviation over images of the decoded values, float64 [C]."""
        return codes.moments(self.counts, self.means)

    @functools.cached_property
    def standard(self) -> NDArray[np.float32]:
        """The z of the decoded value of each code, float32 [C, 256]; 0 for a unit that never varies."""
        return codes.standardized(self.counts, self.means)

    def codes_of(self, values: NDArray[np.float32]) -> Codes:
        """The code of one value for each unit: float32 [C] -> uint8 [C]."""
        found: Codes = codes.encode(values[None], self.edges)[0]
        return found


class Dense:
    """The dense record of one run. Codebooks and open files are kept; rows and columns are read when asked for."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self._books: dict[tuple[str, Statistic], Codebook] = {}
        self._open = functools.lru_cache(_OPEN_FILES)(hdf5.opened)
        self._datasets = functools.lru_cache(4 * _OPEN_FILES)(lambda place, name: hdf5.dataset(self._open(place), name))

    def book(self, layer: Layer, statistic: Statistic) -> Codebook:
        key = (layer.name, statistic)
        if key not in self._books:
            place = self.run.array(layout.array(self.run.name, "codes"))
            prefix = f"{layer.name}/{statistic}"
            self._books[key] = Codebook(lambda name: np.asarray(self.dataset(place, f"{prefix}/{name}")[()]))
        return self._books[key]

    def books(self, statistic: Statistic) -> list[Codebook]:
        """Codebooks of all layers, in order."""
        return [self.book(layer, statistic) for layer in self.run.layers]

    def dataset(self, place: Path, name: str) -> h5py.Dataset:
        """A dataset of one of the run's HDF5 files, which stays open."""
        return self._datasets(place, name)

    @functools.cached_property
    def moments_of_means(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Mean and standard deviation over images of each unit's decoded spatial mean, float64 [U]."""
        moments = [book.moments for book in self.books("mean")]
        return np.concatenate([mean for mean, _ in moments]), np.concatenate([sd for _, sd in moments])

    def image(self, image_id: int, statistic: Statistic) -> Codes:
        """Codes of one image over all units: uint8 [U]."""
        block, row = divmod(image_id, layout.BLOCK)
        found: Codes = self.dataset(self.run.array(layout.codes_by_image(self.run.name, block)), statistic)[row]
        return found

    def unit(self, layer: Layer, channel: int, statistic: Statistic, images: slice = slice(None)) -> Codes:
        """Codes of one unit over the images of the dataset, rejected ones too (code 0): uint8 [images]."""
        found: Codes = self._by_unit(layer, statistic)[channel, images]
        return found

    def rows(self, layer: Layer, statistic: Statistic, channels: NDArray[np.int64]) -> Iterator[tuple[int, Codes]]:
        """The place in `channels` (rising) and the codes over all images of each; many are read together."""
        data, images = self._by_unit(layer, statistic), max(len(self.run.images.accepted), 1)
        step = max(1, _AT_ONCE // images)
        if len(channels) < layer.channels // 2 or step == 1:
            yield from ((i, data[int(channel)]) for i, channel in enumerate(channels))
            return
        for first in range(0, layer.channels, step):
            block = data[first : first + step]
            for i in range(*np.searchsorted(channels, [first, first + step])):
                yield i, block[channels[i] - first]

    def layer_codes(self, layer: Layer, images: slice) -> Codes:
        """Codes of the maxima of a layer's units on a range of image ids: uint8 [C, images]."""
        found: Codes = self._by_unit(layer, "max")[:, images]
        return found

    @functools.lru_cache(maxsize=4)  # noqa: B019 - a record lives as long as its scope
    def coordinates(self, layer: Layer) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
        """Where all images lie among a layer's principal components, int8 [images, D], and their lengths in z space."""
        blocks = -(-len(self.run.images.accepted) // layout.BLOCK)
        places = [self.run.array(layout.coordinates(self.run.name, block)) for block in range(blocks)]
        near, length = (
            np.concatenate([self.dataset(place, f"{layer.name}/{key}")[()] for place in places])
            for key in ("coordinates", "lengths")
        )
        return near, length

    def close(self) -> None:
        self._datasets.cache_clear()
        self._open.cache_clear()

    def _by_unit(self, layer: Layer, statistic: Statistic) -> h5py.Dataset:
        return self.dataset(self.run.array(layout.codes_by_unit(self.run.name, layer.name)), statistic)

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
