"""Run a store's model on a picture that was never scanned.

This is the only module of `query` that imports torch and `pipeline`, and it does so only when it is used.
"""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from query.questions.image_units import ImageRow
from query.record.dense import Dense
from query.record.run_tables import Run
from store.errors import UsageError

if TYPE_CHECKING:
    from pipeline.models import Model
    from pipeline.scan.batch_statistics import BatchStatistics
    from pipeline.scan.measurer import Measurer


class Probe:
    """The model of one run, ready to measure pictures.

    The store names the model's source, which is opened; the digest of its weights must be the one in the store.
    `model_code` says whether a `python:` source, whose import runs code, is allowed.
    """

    def __init__(self, dense: Dense, model_code: bool) -> None:
        from pipeline.scan.measurer import Measurer

        self.dense, self.run = dense, dense.run
        self._model: Model = _open(self.run, model_code)
        settings = _settings(self.run)
        self._batch: int = settings["scan"]["batch_size"]
        self._measure: Measurer = Measurer(
            self._model,
            [layer.name for layer in self.run.layers],
            precision=settings["compute"]["precision"],
            border=settings["scan"]["border"],
        )

    def row(self, path: Path, units: NDArray[np.int64]) -> ImageRow:
        """Measure a picture on these units. value, mean, y and x are exact.

        tail_p = (1 + images that have at least the value) / (n + 1): the picture counts as one more image. Images
        with the value's own code are counted by where they lie on average (`store.codes.images_reaching`), all others
        exactly.
        """
        from pipeline.data.decode import BadImageError, open_image

        try:
            image = open_image(path)
        except BadImageError as error:
            raise UsageError(f"picture {path}: {error}") from error
        measured = self._measured(self._model.preprocess.pixels(image))
        value, mean, flat = measured.max[0].copy(), measured.mean[0].copy(), measured.argmax[0]
        widths = np.concatenate([np.full(layer.channels, layer.width, np.int32) for layer in self.run.layers])
        spatial = np.concatenate([np.full(layer.channels, layer.spatial) for layer in self.run.layers])
        y, x = (np.where(spatial, at, -1).astype(np.int32) for at in (flat // widths, flat % widths))
        row = ImageRow(np.arange(self.run.units), value, mean, self._tail_p(value), y, x, self.run.n)
        return row.take(units)

    def _measured(self, pixels: NDArray[np.uint8]) -> BatchStatistics:
        """Measure as the scan did: in a batch of the scan's size, on one thread.

        In a batch of another size the last bits differ, and a copy of a stored picture could fall on either side of
        the edge of its own code.
        """
        import torch

        from pipeline.data.loading import pad_batch

        batch = pad_batch([pixels], self._batch)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return self._measure.pixels(batch)
        finally:
            torch.set_num_threads(threads)

    def _tail_p(self, value: NDArray[np.float32]) -> NDArray[np.float64]:
        reached = np.empty(len(value), np.int64)
        for layer, book in zip(self.run.layers, self.dense.books("max"), strict=True):
            reached[layer.columns] = book.images_reaching(value[layer.columns])
        reached[value > self.run.statistics.maximum] = 0
        return (1 + reached) / (self.run.n + 1)


def _settings(run: Run) -> dict[str, dict[str, Any]]:
    """Read the config that the run was made with, which says how its values were measured."""
    if run.files.config is None:
        raise UsageError(f"run {run.name} has no config.toml yet: finish it with `unitscope run`")
    return tomllib.loads(run.files.config.read_text())


def _open(run: Run, model_code: bool) -> Model:
    """Open the run's model. Raises UsageError unless weights and preprocessing are those of the store."""
    from pipeline.models import open_model

    row: dict[str, Any] = run.rows("models", "source, weights, digest, preprocessing").to_pylist()[0]
    if row["source"].startswith("python:") and not model_code:
        raise UsageError(
            f"model {run.model} comes from {row['source']}, which runs code: if you trust this store, "
            "allow it with query.open(..., model_code=True) or --allow-model-code"
        )
    model = open_model(row["source"], row["weights"], run.model)
    if model.digest != row["digest"]:
        raise UsageError(
            f"model {run.model}: the weights found now ({row['weights']}, {model.digest[:12]}) are not those the store "
            f"was made with ({row['digest'][:12]})"
        )
    if json.loads(row["preprocessing"]) != json.loads(json.dumps(model.preprocess.as_dict())):
        raise UsageError(f"model {run.model}: its preprocessing is no longer what the store was made with")
    return model
