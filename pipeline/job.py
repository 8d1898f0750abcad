"""A job: one config on one store. What every stage needs, made once a process."""

from __future__ import annotations

import difflib
import fnmatch
import functools
import hashlib
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from pipeline import config as configs
from pipeline.config import Config
from pipeline.data import sources
from pipeline.data.indexing import limited
from pipeline.data.loading import Batch, batches
from pipeline.data.source import Entry, Source
from pipeline.graph import Layer
from pipeline.machine import in_order, resolve_device, threads_of_worker
from pipeline.models import Model, open_model
from pipeline.runtime.timing import phase, waits
from pipeline.scan.batch_statistics import Measured
from pipeline.scan.measurer import Measurer, Units
from store import layout, parquet, publish
from store.errors import UsageError
from store.logs import Log, slurm_facts
from store.publish import Publication, Record


@dataclass(frozen=True)
class Shard:
    """The unit of work, retry and resume. `first` and `last` bound a range of positions or units; `size` is its share
    of the progress bar, in the stage's own unit."""

    name: str
    first: int = 0
    last: int = 0
    size: int = 1
    layer: str = ""


@dataclass(frozen=True)
class Stage:
    """`phases` lists shards to finish before the next list begins; `run` computes one and commits it.

    `at_once`: shards that run beside each other in one process.
    """

    name: str
    unit: str  # of the progress bar
    phases: Callable[[Job], list[list[Shard]]]
    run: Callable[[Job, Shard, Callable[[int], None]], Record]
    at_once: Callable[[Job], int] = lambda _: 1


class Job:
    def __init__(
        self, config: Config, root: Path, progress: bool = True, device: str = "", where: dict[str, str] | None = None
    ) -> None:
        """`device`: where another machine computes, what it has; `where`: facts for every line of the log."""
        self.config, self.root, self.progress = config, root, progress
        self.device = device or resolve_device(config.compute.device)
        self.log = Log(root, (where or {"engine": "local"}) | slurm_facts())

    @property
    def threads(self) -> int:
        return threads_of_worker(self.config.compute.threads, self.config.compute.workers)

    @functools.cached_property
    def model(self) -> Model:
        c = self.config.model
        return open_model(c.source, c.weights, c.name or None)

    @functools.cached_property
    def layers(self) -> tuple[Layer, ...]:
        chosen = self.config.model.layers
        return self.model.graph.layers(chosen)

    @functools.cached_property
    def units(self) -> Units:
        return Units(self.layers)

    @functools.cached_property
    def source(self) -> Source:
        return sources.open_source(self.config.dataset.source, self.config.dataset.name)

    @functools.cached_property
    def visualized(self) -> tuple[Layer, ...]:
        """The layers of the run that `[visualize] layers` names."""
        chosen = self.config.visualize.layers
        if chosen in ("blocks", "all"):
            return self.layers
        chosen = (chosen,) if isinstance(chosen, str) else chosen
        for pattern in chosen:
            if not fnmatch.filter([layer.name for layer in self.layers], pattern):
                near = difflib.get_close_matches(pattern, [layer.name for layer in self.layers], 3)
                hint = f"; near: {', '.join(near)}" if near else ""
                raise UsageError(
                    f"[visualize] layers: {pattern!r} matches no layer of the run{hint} "
                    f"(see `unitscope layers {self.config.model.source}`)"
                )
        return tuple(x for x in self.layers if any(fnmatch.fnmatch(x.name, pattern) for pattern in chosen))

    @functools.cached_property
    def entries(self) -> list[Entry]:
        """The pictures of the source that `limit` and `limit_per_class` leave."""
        return limited(self.source.entries, self.config.dataset.limit, self.config.dataset.limit_per_class)

    @functools.cached_property
    def listing(self) -> str:
        """SHA-256 of what the source tells without reading pictures."""
        return self.source.listing(lambda: self.entries)

    @property
    def other_pictures(self) -> str:
        return (
            f"{self.root} already holds a dataset {self.dataset!r} with other pictures: "
            "give this one another `name` in [dataset], or put back what was indexed"
        )

    @property
    def dataset(self) -> str:
        return self.source.name

    @property
    def run(self) -> str:
        return layout.run_name(self.model.name, self.dataset)

    @functools.cached_property
    def measurer(self) -> Measurer:
        c = self.config
        return Measurer(
            self.model, self.layers, device=self.device, precision=c.compute.precision, border=c.scan.border,
            compile=c.compute.compile,
        )  # fmt: skip

    @functools.cached_property
    def keys(self) -> dict[str, dict[str, Any]]:
        return configs.fingerprinted(self.config, self.device)

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 over everything that changes results."""
        body = {
            "config": {k: self.keys[k] for k in self.keys if k not in ("model", "dataset")},
            "dataset": {k: v for k, v in self.keys["dataset"].items() if k != "source"},  # its contents have a digest
            "layers": [layer.name for layer in self.layers],
            "preprocessing": self.model.preprocess.as_dict(),
            "versions": {"torch": torch.__version__, "unitscope": version("unitscope")},
            "weights": self.model.digest,
        }
        return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()

    @functools.cached_property
    def images(self) -> pa.Table:
        """The dataset's index, once it is committed."""
        return parquet.read(self.root / layout.dataset_table(self.dataset, "images"))

    @functools.cached_property
    def readable(self) -> NDArray[np.int64]:
        """image_id of the pictures that the index accepted, in order of position."""
        status = np.array(self.images["status"].to_pylist())
        order = np.argsort(self.images["position"].to_numpy(), kind="stable")
        return order[status[order] == "accepted"].astype(np.int64)

    @functools.cached_property
    def accepted(self) -> NDArray[np.int64]:
        """image_id of the pictures that the scan could decode, in order of position."""
        rejected = [i for record in self.done("scan").values() for i, _ in record.facts["rejected"]]
        return self.readable[~np.isin(self.readable, rejected)]

    def entry(self, image_id: int) -> Entry:
        """Where an indexed picture lies."""
        files, offsets, lengths = self._places
        return Entry(self._paths[image_id], None, files[image_id], offsets[image_id], lengths[image_id])

    @functools.cached_property
    def _places(self) -> tuple[list[str | None], list[int | None], list[int | None]]:
        file, offset, length = (self.images[name].to_pylist() for name in ("source_file", "offset", "length"))
        return file, offset, length

    @functools.cached_property
    def _paths(self) -> list[str]:
        return [str(p) for p in self.images["path"].to_pylist()]

    @functools.cached_property
    def _digests(self) -> list[str]:
        return [str(d) for d in self.images["sha256"].to_pylist()]

    def read_image(self, image_id: int) -> bytes:
        """The bytes of a picture. Raises UsageError where they are no longer what was indexed: nothing is recorded."""
        path = self._paths[image_id]
        try:
            data = self.source.read(self.entry(image_id))
        except OSError as error:
            raise UsageError(
                f"{path} was indexed and cannot be read now ({error.strerror}): put it back, run again"
            ) from error
        if hashlib.sha256(data).hexdigest() != self._digests[image_id]:
            raise UsageError(
                f"{path} has changed since it was indexed: put it back, or index the pictures under another `name`"
            )
        return data

    def batches(self, ids: NDArray[np.int64]) -> Iterator[Batch]:
        """Pictures decoded ahead, in batches of the scan's size."""
        size = self.config.scan.batch_size
        return batches(ids.tolist(), self.read_image, self.model.preprocess.pixels, size, self._decoders)

    def measured(self, ids: NDArray[np.int64]) -> Iterator[tuple[Batch, Measured | None]]:
        """Each batch with its measurements, None where none of its pictures could be decoded."""
        measurer = self.measurer  # made here, not in the threads

        def measure(batch: Batch) -> tuple[Batch, Measured | None]:
            return batch, measurer.pixels(batch.pixels) if len(batch.ids) else None

        return in_order(measure, waits(self.batches(ids)), self.streams, self.network_threads)

    @functools.cached_property
    def _decoders(self) -> ThreadPoolExecutor:
        """Threads that decode, the same for all shards: what libraries keep for a thread is kept once."""
        return ThreadPoolExecutor(max(self.threads, 1))

    @functools.cached_property
    def network_threads(self) -> ThreadPoolExecutor:
        """As many forward passes at a time as there are streams, however many shards are at work."""
        return ThreadPoolExecutor(self.streams)

    @property
    def streams(self) -> int:
        """Batches that run beside each other: one a thread on a CPU, one on a GPU."""
        return self.threads if self.device == "cpu" else 1

    def path_of(self, image_id: int) -> str:
        return self._paths[image_id]

    @contextmanager
    def publication(self, stage: str, shard: str) -> Iterator[Publication]:
        with phase("write"), Publication(self.root, self.run, stage, shard, self.fingerprint) as out:
            yield out

    def log_plan(self, stage: Stage, phases: list[list[Shard]]) -> None:
        """Notes how many shards a stage has, for `status`."""
        self.log.write("plan", run=self.run, stage=stage.name, phases=[len(phase) for phase in phases])

    def record(self, stage: str, shard: str) -> Record | None:
        return publish.find_record(self.root, self.run, stage, shard)

    def done(self, stage: str) -> dict[str, Record]:
        """The committed shards of a stage. Raises UsageError where they were made under another fingerprint."""
        found = publish.records(self.root, self.run, stage)
        if stage == "index" and any(record.facts["listing"] != self.listing for record in found):
            raise UsageError(self.other_pictures)
        for record in found:
            if record.fingerprint != self.fingerprint:
                raise UsageError(self._other_config(record))
        return {record.shard: record for record in found}

    def _other_config(self, record: Record) -> str:
        return (
            f"{self.root} already holds a run {self.run} made with other settings ({self._differences()}): "
            "give the model another `name` in the config, or choose another --store"
        )

    def _differences(self) -> str:
        import tomllib

        record = publish.find_record(self.root, self.run, "index", "index")
        if record is None or "config" not in record.facts:
            return "or other weights or versions"
        old = tomllib.loads(record.facts["config"])
        new = tomllib.loads(configs.to_toml(self.keys))
        found = [
            f"[{section}] {key} was {old.get(section, {}).get(key)!r}, is {value!r}"
            for section, entries in new.items()
            for key, value in entries.items()
            if old.get(section, {}).get(key) != value
        ]
        return "; ".join(found[:3]) or "other weights, or another version of torch or unitscope"
