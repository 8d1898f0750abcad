"""The dense record: a tail code for every unit and every image."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from query.record.codebook import Codebook, Codes, Statistic
from query.record.run_tables import Layer, Run
from store import hdf5, layout
from store.codes import CODES

_AT_ONCE = 16 << 20  # codes of a layer that are read together
_OPEN_FILES = 64

T = TypeVar("T")


class Dense:
    """The dense record of one run.

    Rows and columns are read when they are asked for; codebooks and open files are kept until `close`.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self._books: dict[tuple[str, Statistic], Codebook] = {}
        self._remembered: dict[Hashable, Any] = {}
        self._open = functools.lru_cache(_OPEN_FILES)(hdf5.opened)
        self._datasets = functools.lru_cache(4 * _OPEN_FILES)(lambda path, name: hdf5.dataset(self._open(path), name))

    def remember(self, key: Hashable, make: Callable[[], T]) -> T:
        """Return what `make` gave when it was first called with this key. It is kept as long as this record."""
        if key not in self._remembered:
            self._remembered[key] = make()
        kept: T = self._remembered[key]
        return kept

    def book(self, layer: Layer, statistic: Statistic) -> Codebook:
        key = (layer.name, statistic)
        if key not in self._books:
            path = self.run.array(layout.array(self.run.name, "codes"))
            prefix = f"{layer.name}/{statistic}"
            self._books[key] = Codebook(
                lambda name, dtype: np.asarray(self.dataset(path, f"{prefix}/{name}", dtype, layer.channels, CODES)[()])
            )
        return self._books[key]

    def books(self, statistic: Statistic) -> list[Codebook]:
        """Return the codebooks of all layers, in their order."""
        return [self.book(layer, statistic) for layer in self.run.layers]

    def dataset(self, path: Path, name: str, dtype: str, *shape: int | None) -> hdf5.Stored:
        """Return a dataset of one of the run's HDF5 files, which stays open.

        Raises UsageError if it does not have this dtype and shape, in which None stands for any size.
        """
        return self._datasets(path, name).expect(dtype, *shape)

    @functools.cached_property
    def moments_of_means(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Mean and standard deviation over images of each unit's decoded spatial mean, float64 [U] each."""
        moments = [book.moments for book in self.books("mean")]
        return np.concatenate([mean for mean, _ in moments]), np.concatenate([sd for _, sd in moments])

    @functools.cached_property
    def kept_pictures(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The rising ids of the pictures that the store keeps, int64 [k], and where each JPEG begins, int64 [k + 1]."""
        relative = layout.example_images(self.run.name)
        if relative not in self.run.files.arrays:
            return np.zeros(0, np.int64), np.zeros(1, np.int64)
        path = self.run.array(relative)
        known = self.dataset(path, "image_ids", "int64", None)[()]
        return known, self.dataset(path, "offsets", "int64", len(known) + 1)[()]

    def kept_jpeg(self, image_id: int) -> bytes | None:
        """Return the stored JPEG of a picture as the network saw it, or None if the store does not keep it."""
        known, offsets = self.kept_pictures
        row = int(np.searchsorted(known, image_id))
        if row == len(known) or known[row] != image_id:
            return None
        data = self.dataset(self.run.array(layout.example_images(self.run.name)), "jpeg", "uint8", None)
        return bytes(data[offsets[row] : offsets[row + 1]].tobytes())

    def image(self, image_id: int, statistic: Statistic) -> Codes:
        """Return the codes of one image over all units: uint8 [U]."""
        block, row = divmod(image_id, layout.BLOCK)
        path = self.run.array(layout.codes_by_image(self.run.name, block))
        rows = min(len(self.run.images.accepted) - block * layout.BLOCK, layout.BLOCK)
        of_image: Codes = self.dataset(path, statistic, "uint8", rows, self.run.units)[row]
        return of_image

    def unit(self, layer: Layer, channel: int, statistic: Statistic, images: slice = slice(None)) -> Codes:
        """Return the codes of one unit over a range of image ids: uint8 [images]. Rejected images have code 0."""
        of_unit: Codes = self._by_unit(layer, statistic)[channel, images]
        return of_unit

    def blocks(self, layer: Layer, statistic: Statistic, channels: NDArray[np.int64]) -> Iterator[tuple[slice, Codes]]:
        """Yield parts of `channels` (rising), each with the codes of these channels over all images: uint8 [n, images].

        Neighbouring channels are read together where most of the layer is asked for.
        """
        data, images = self._by_unit(layer, statistic), max(len(self.run.images.accepted), 1)
        step = max(1, _AT_ONCE // images)
        if len(channels) < layer.channels // 2 or step == 1:
            yield from ((slice(i, i + 1), data[int(channel)][None]) for i, channel in enumerate(channels))
            return
        for first in range(0, layer.channels, step):
            block = data[first : first + step]
            part = slice(*np.searchsorted(channels, [first, first + step]).tolist())
            chosen = channels[part]
            yield part, block if len(chosen) == len(block) else block[chosen - first]

    def layer_codes(self, layer: Layer, images: slice) -> Codes:
        """Return the codes of the maxima of a layer's units on a range of image ids: uint8 [C, images]."""
        block: Codes = self._by_unit(layer, "max")[:, images]
        return block

    @functools.lru_cache(maxsize=4)  # noqa: B019 - a record lives as long as its scope
    def coordinates(self, layer: Layer) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
        """Return every image's coordinates along a layer's principal components, and its length in z space.

        int8 [images, D] and float32 [images].
        """
        blocks = -(-len(self.run.images.accepted) // layout.BLOCK)
        paths = [self.run.array(layout.coordinates(self.run.name, block)) for block in range(blocks)]
        shapes: dict[str, tuple[int | None, ...]] = {"coordinates": (None, None), "lengths": (None,)}
        dtypes = {"coordinates": "int8", "lengths": "float32"}
        coordinates, lengths = (
            np.concatenate([self.dataset(path, f"{layer.name}/{key}", dtypes[key], *shapes[key])[()] for path in paths])
            for key in shapes
        )
        if not len(coordinates) == len(lengths) == len(self.run.images.accepted):
            raise self.run.inconsistent(f"the coordinates of {layer.name} are of {len(lengths)} images")
        return coordinates, lengths

    def close(self) -> None:
        self._datasets.cache_clear()
        self._open.cache_clear()

    def decode(self, units: NDArray[np.int64], codes: Codes, statistic: Statistic) -> NDArray[np.float32]:
        """Return the mean value of each (unit, code). Only the layers concerned are read."""
        result = np.empty(len(units), np.float32)
        for layer, rows in self._by_layer(units):
            result[rows] = self.book(layer, statistic).means[units[rows] - layer.start, codes[rows]]
        return result

    def decode_tail(self, units: NDArray[np.int64], codes: Codes) -> NDArray[np.float64]:
        """Return tail_p of each (unit, code of its maximum)."""
        result = np.empty(len(units), np.float64)
        for layer, rows in self._by_layer(units):
            result[rows] = self.book(layer, "max").tail_p[units[rows] - layer.start, codes[rows]]
        return result

    def _by_unit(self, layer: Layer, statistic: Statistic) -> hdf5.Stored:
        path = self.run.array(layout.codes_by_unit(self.run.name, layer.name))
        return self.dataset(path, statistic, "uint8", layer.channels, len(self.run.images.accepted))

    def _by_layer(self, units: NDArray[np.int64]) -> list[tuple[Layer, NDArray[np.intp]]]:
        """Return the layers of some units, each with the rows of `units` that are its own."""
        order = np.argsort(units, kind="stable")
        starts = np.array([layer.start for layer in self.run.layers] + [self.run.units])
        cuts = np.searchsorted(units[order], starts)
        return [(layer, order[a:b]) for layer, a, b in zip(self.run.layers, cuts[:-1], cuts[1:], strict=True) if b > a]
