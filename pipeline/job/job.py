"""One config on one store: what every stage needs, made once per process."""

from __future__ import annotations

from pathlib import Path

from pipeline.config import Config
from pipeline.job.dataset import Dataset
from pipeline.job.runtime import Runtime
from pipeline.job.spec import Spec
from pipeline.job.store import RunStore
from pipeline.runtime.devices import resolve_device


class Job:
    """A config and a store, in four parts.

    `spec` is what is computed, `dataset` the images it is computed over, `store` where results are committed and
    `runtime` what computes them in this process. All four are lazy: making a job opens nothing.
    """

    def __init__(
        self, config: Config, root: Path, progress: bool = True, device: str = "", where: dict[str, str] | None = None
    ) -> None:
        """Make a job.

        `device` replaces this machine's own if another machine computes. `where` holds facts for every log line.
        """
        self.spec = Spec(config, device or resolve_device(config.compute.device))
        self.dataset = Dataset(config, root)
        self.store = RunStore(self.spec, self.dataset, root, where or {"engine": "local"})
        self.runtime = Runtime(self.spec, self.dataset, progress)
