"""Where a job commits its results: the records of its run, publication, and the log."""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline import config as configs
from pipeline.job.dataset import Dataset
from pipeline.job.spec import Spec
from pipeline.runtime.timing import phase
from store import commits, layout
from store.commits import Record
from store.errors import UsageError
from store.logs import Log, slurm_facts
from store.publish import Publication


class RunStore:
    """The part of a store that belongs to one run."""

    def __init__(self, spec: Spec, dataset: Dataset, root: Path, where: dict[str, str]) -> None:
        self._spec, self._dataset, self.root = spec, dataset, root
        self.log = Log(root, where | slurm_facts())

    @property
    def run(self) -> str:
        return layout.run_name(self._spec.model.name, self._dataset.name)

    @property
    def other_pictures(self) -> str:
        """The error for a dataset whose name the store already holds with other images."""
        return (
            f"{self.root} already holds a dataset {self._dataset.name!r} with other pictures: "
            "give this one another `name` in [dataset], or put back what was indexed"
        )

    @contextmanager
    def publication(
        self, stage: str, shard: str, confirm: Callable[[], object] = lambda: None
    ) -> Iterator[Publication]:
        """Begin to publish a shard. `confirm`: see `Publication`."""
        with phase("write"), Publication(self.root, self.run, stage, shard, self._spec.fingerprint, confirm) as out:
            yield out

    def log_plan(self, stage: str, phases: Sequence[int]) -> None:
        """Log how many shards each phase of a stage has, for `status`."""
        self.log.write("plan", run=self.run, stage=stage, phases=list(phases))

    def record(self, stage: str, shard: str) -> Record | None:
        return commits.find_record(self.root, self.run, stage, shard)

    def done(self, stage: str) -> dict[str, Record]:
        """Return the records of a stage's committed shards, by shard.

        Raises UsageError if they have another fingerprint, or if the index is of other images.
        """
        records = commits.records(self.root, self.run, stage)
        if stage == "index" and any(record.facts.get("listing") != self._dataset.listing for record in records):
            raise UsageError(self.other_pictures)
        for record in records:
            if record.fingerprint != self._spec.fingerprint:
                raise UsageError(self._other_config())
        return {record.shard: record for record in records}

    @functools.cached_property
    def accepted(self) -> NDArray[np.int64]:
        """image_id of the images that the scan could decode, in order of position. It needs the complete scan."""
        rejected = [i for record in self.done("scan").values() for i, _ in record.facts.get("rejected", [])]
        return self._dataset.readable[~np.isin(self._dataset.readable, rejected)]

    def _other_config(self) -> str:
        return (
            f"{self.root} already holds a run {self.run} made with other settings ({self._differences()}): "
            "give the model another `name` in the config, or choose another --store"
        )

    def _differences(self) -> str:
        record = commits.find_record(self.root, self.run, "index", "index")
        if record is None or "config" not in record.facts:
            return "or other weights or versions"
        old = tomllib.loads(record.facts["config"])
        new = tomllib.loads(configs.to_toml(self._spec.keys))
        differences = [
            f"[{section}] {key} was {old.get(section, {}).get(key)!r}, is {value!r}"
            for section, entries in new.items()
            for key, value in entries.items()
            if old.get(section, {}).get(key) != value
        ]
        return "; ".join(differences[:3]) or "other weights, or another version of torch or unitscope"
