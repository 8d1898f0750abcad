"""Read the scan's partials back: one layer over all images, in blocks of channels."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.job import Job
from pipeline.runtime.timing import timed
from pipeline.stages.scan import signed_units
from pipeline.statistics import moments
from pipeline.statistics.moments import Pair
from store import hdf5, layout


class ScanPartials:
    """The scan of a run. Rows are accepted images.

    They are in rising image_id, whatever order they were stored in, except those of `rows`.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self.files = [
            job.store.root / layout.partial(job.store.run, "scan", f"{name}.h5")
            for name, record in sorted(job.store.done("scan").items())
        ]

    @functools.cached_property
    def _ids(self) -> NDArray[np.int64]:
        return np.concatenate([np.zeros(0, np.int64), *(hdf5.read(f, "ids") for f in self.files)])

    @functools.cached_property
    def _order(self) -> NDArray[np.int64]:
        return np.argsort(self._ids, kind="stable")

    @property
    def ids(self) -> NDArray[np.int64]:
        """image_id of the accepted pictures in rising order: int64 [N]."""
        return self._ids[self._order]

    @functools.cached_property
    def rejected(self) -> list[tuple[int, str]]:
        """image_id of each picture that could not be decoded, with the reason, in rising image_id."""
        pairs = [r for record in self._job.store.done("scan").values() for r in record.facts.get("rejected", [])]
        return sorted((int(i), str(reason)) for i, reason in pairs)

    def columns(self, layer: str, names: Sequence[str], channels: slice) -> dict[str, NDArray[Any]]:
        """Read statistics of some channels of a layer over all images: [N, channels] each. Open every file once."""
        pieces = list(self._pieces({name: self._columns(layer, name, channels) for name in names}))
        return {name: np.concatenate([piece[name] for piece in pieces])[self._order] for name in names}

    def rows(self, layer: str, name: str) -> Iterator[NDArray[np.float32]]:
        """Yield one statistic of a whole layer, shard after shard: float32 [n, C], in the order of the partials."""
        for piece in self._pieces({name: self._columns(layer, name, slice(None))}):
            yield piece[name].astype(np.float32, copy=False)

    def _pieces(self, units: Mapping[str, slice]) -> Iterator[dict[str, NDArray[Any]]]:
        """Yield some units of some statistics of each file that has images."""
        return (piece for file in self.files if (piece := _slices(file, units)) is not None)

    def _columns(self, layer: str, name: str, channels: slice) -> slice:
        """Return the columns of a layer's channels in a partial's array; minima are stored for signed layers only."""
        units = self._job.spec.units.slice([x.name for x in self._job.spec.layers].index(layer))
        first, last, _ = channels.indices(units.stop - units.start)
        start = units.start
        if name in ("min", "argmin"):
            start = int(np.searchsorted(self._signed, start))
        return slice(start + first, start + last)

    @functools.cached_property
    def _signed(self) -> NDArray[np.int64]:
        return signed_units(self._job.spec.units)

    def moments(self, units: slice) -> tuple[Pair, Pair, NDArray[np.int64], NDArray[np.float32]]:
        """Return the sum, sum of squares, number of positions above zero and minimum of some units.

        Each is over all positions of all images.
        """
        count = units.stop - units.start
        total, square = moments.zero(count), moments.zero(count)
        active, minimum = np.zeros(count, np.int64), np.full(count, np.inf, np.float32)
        for file in self.files:
            with hdf5.reading(file) as partial:
                sums, squares = (hdf5.dataset(partial, name)[:, units] for name in ("total", "square"))
                total, square = moments.add(total, Pair(*sums)), moments.add(square, Pair(*squares))
                active = active + hdf5.dataset(partial, "active")[units]
                minimum = np.minimum(minimum, hdf5.dataset(partial, "minimum")[units])
        return total, square, active, minimum

    def predictions(self) -> tuple[NDArray[np.int32], NDArray[np.float32]] | None:
        """Return the top-5 classes and probabilities, [N, 5] each, or None if the run does not reach the output."""
        pieces = []
        for file in self.files:
            with hdf5.reading(file) as partial:
                if not len(hdf5.dataset(partial, "ids")):
                    continue
                if "top5_class" not in partial:
                    return None
                pieces.append(tuple(hdf5.dataset(partial, n)[()] for n in ("top5_class", "top5_probability")))
        if not pieces:
            return None
        classes, probabilities = (np.concatenate(column)[self._order] for column in zip(*pieces, strict=True))
        return classes, probabilities


@timed("wait")
def _slices(file: Path, units: Mapping[str, slice]) -> dict[str, NDArray[Any]] | None:
    with hdf5.reading(file) as partial:
        if not len(hdf5.dataset(partial, "ids")):
            return None
        return {name: np.asarray(hdf5.dataset(partial, name)[:, columns]) for name, columns in units.items()}
