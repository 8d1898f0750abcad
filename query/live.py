"""Runs a store's model on a picture that was never scanned. The one module of `query` that imports torch, when used."""

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
    """The model of one run, ready for pictures.

    The store says which model: its source is opened, and its weights' digest must be the store's. `model_code`: whether
    a `python:` source, which runs code, may be imported.
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
        """The picture over these units: exact value, mean, y and x.

        tail_p = (1 + images that reach the value's code) / (n + 1): the picture counts as one more. Never less than the
        value's own share, which it is at code edges and for a value above all images.
        """
        from pipeline.data.decode import BadImageError, open_image

        try:
            image = open_image(path)
        except BadImageError as error:
            raise UsageError(f"picture {path}: {error}") from error
        found = self._measured(self._model.preprocess.pixels(image))
        value, mean, flat = found.max[0].copy(), found.mean[0].copy(), found.argmax[0]
        widths = np.concatenate([np.full(layer.channels, layer.width, np.int32) for layer in self.run.layers])
        row = ImageRow(
            np.arange(self.run.units), value, mean, self._tail_p(value), flat // widths, flat % widths, self.run.n
        )
        return row.take(units)

    def _measured(self, pixels: NDArray[np.uint8]) -> BatchStatistics:
        """As the scan measured: a batch of its size, one thread. In another batch the last bits differ, and a copy of
        a stored picture would fall on either side of its own code edge."""
        import torch

        batch = np.zeros((self._batch, *pixels.shape), np.uint8)
        batch[0] = pixels
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return self._measure.pixels(batch)
        finally:
            torch.set_num_threads(threads)

    def _tail_p(self, value: NDArray[np.float32]) -> NDArray[np.float64]:
        reached = np.empty(len(value), np.int64)
        for layer, book in zip(self.run.layers, self.dense.books("max"), strict=True):
            code = book.codes_of(value[layer.columns])
            reached[layer.columns] = book.reaching[np.arange(layer.channels), code]
        reached[value > self.run.statistics.maximum] = 0
        return (1 + reached) / (self.run.n + 1)


def _settings(run: Run) -> dict[str, dict[str, Any]]:
    """The run's fingerprinted config: how its values were measured."""
    if run.files.config is None:
        raise UsageError(f"run {run.name} has no config.toml yet: finish it with `unitscope run`")
    return tomllib.loads(run.files.config.read_text())


def _open(run: Run, model_code: bool) -> Model:
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
