"""The means to compute a job in this process: threads, decoding, and the network that measures units."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from pipeline.data.loading import Batch, batches
from pipeline.job.dataset import Dataset
from pipeline.job.spec import Spec
from pipeline.runtime.devices import threads_of_worker
from pipeline.runtime.ordered_map import ordered_map
from pipeline.runtime.timing import timed_iter
from pipeline.scan.batch_statistics import BatchStatistics
from pipeline.scan.measurer import Measurer


class Runtime:
    """Thread pools and the measurer of one process, made when first asked for and shared by all shards."""

    def __init__(self, spec: Spec, dataset: Dataset, progress: bool) -> None:
        self._spec, self._dataset, self.progress = spec, dataset, progress

    @property
    def device(self) -> str:
        return self._spec.device

    @property
    def threads(self) -> int:
        return threads_of_worker(self._spec.config.compute.threads, self._spec.config.compute.workers)

    @property
    def streams(self) -> int:
        """The number of batches that run side by side: one per thread on a CPU, one on a GPU."""
        return self.threads if self.device == "cpu" else 1

    @functools.cached_property
    def measurer(self) -> Measurer:
        c = self._spec.config
        return Measurer(
            self._spec.model, self._spec.layers, device=self.device, precision=c.compute.precision,
            border=c.scan.border, compile=c.compute.compile,
        )  # fmt: skip

    @functools.cached_property
    def network_threads(self) -> ThreadPoolExecutor:
        """A pool that runs as many forward passes at a time as there are streams, however many shards are computed."""
        return ThreadPoolExecutor(self.streams)

    @functools.cached_property
    def _decoders(self) -> ThreadPoolExecutor:
        """Threads that decode. All shards share them, so that the per-thread data of libraries exist only once."""
        return ThreadPoolExecutor(max(self.threads, 1))

    def batches(self, ids: NDArray[np.int64]) -> Iterator[Batch]:
        """Yield images decoded ahead of the network, in batches of the scan's size."""
        size = self._spec.config.scan.batch_size
        pixels = self._spec.model.preprocess.pixels
        return batches(ids.tolist(), self._dataset.read_image, pixels, size, self._decoders)

    def measured(self, ids: NDArray[np.int64]) -> Iterator[tuple[Batch, BatchStatistics | None]]:
        """Yield each batch of images with its statistics, or None if none of its images could be decoded."""
        return self.measured_batches(self.batches(ids))

    def measured_batches(self, loaded: Iterator[Batch]) -> Iterator[tuple[Batch, BatchStatistics | None]]:
        """Yield each loaded batch with its statistics, as `measured` does."""
        measurer = self.measurer  # made here, not in the threads

        def measure(batch: Batch) -> tuple[Batch, BatchStatistics | None]:
            return batch, measurer.pixels(batch.pixels) if len(batch.ids) else None

        return ordered_map(measure, timed_iter(loaded), self.streams, self.network_threads)
