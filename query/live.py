"""Run a store's model on a picture that was never scanned.

This is the only module of `query` that imports torch and `pipeline`, and it does so only when it is used.
"""

from __future__ import annotations

import hashlib
import json
import threading
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
    from PIL import Image
    from torch import Tensor

    from pipeline.explain import Explanation, Suffix
    from pipeline.graph import Layer
    from pipeline.models import Model
    from pipeline.scan.batch_statistics import BatchStatistics
    from pipeline.scan.measurer import Measurer


def open_picture(source: bytes | Path, most_pixels: int | None = None) -> Image.Image:
    """Decode a picture as the scan does, to mode RGB and upright. Raises UsageError with the reason.

    `most_pixels` bounds a picture from a stranger, before it is decoded. This imports no torch.
    """
    from pipeline.data.decode import BadImageError, open_image, read_size

    try:
        if most_pixels is not None and isinstance(source, bytes):
            width, height = read_size(source)
            if width * height > most_pixels:
                raise BadImageError(f"{width} x {height} pixels are more than the {most_pixels:,} allowed here")
        return open_image(source)
    except BadImageError as error:
        name = f"picture {source}" if isinstance(source, Path) else "this picture"
        raise UsageError(f"{name}: {error}") from error


def dataset_picture(run: Run, image_id: int) -> Image.Image | None:
    """Read a picture of the dataset from its own files, as the store recorded where they are.

    Returns None if they are not at hand, or are not what was indexed. This imports no torch.
    """
    from pipeline.data.source import Entry
    from pipeline.data.sources import open_source

    (row,) = run.image_rows(np.array([image_id]), "path", "source_file", "offset", "length", "sha256").to_pylist()
    (dataset,) = run.rows("datasets", "source", "dataset = ?", [run.dataset]).to_pylist()
    entry = Entry(row["path"], None, row["source_file"], row["offset"], row["length"])
    try:
        data = open_source(dataset["source"], run.dataset).read(entry)
    except (OSError, ValueError, UsageError, ImportError):
        return None
    if hashlib.sha256(data).hexdigest() != row["sha256"]:
        return None
    return open_picture(data)


class Probe:
    """The model of one run, ready to measure pictures.

    The store names the model's source, which is opened; the digest of its weights must be the one in the store.
    `model_code` says whether a `python:` source, whose import runs code, is allowed.
    """

    def __init__(self, dense: Dense, model_code: bool) -> None:
        from pipeline.scan.measurer import Measurer

        self.dense, self.run = dense, dense.run
        self._maps_lock = threading.Lock()
        self._map: NDArray[np.float32]  # what the tap of `maps` found
        self._suffix: Suffix | None = None  # of the layer that was explained last
        self._model: Model = _open(self.run, model_code)
        settings = _settings(self.run)
        self._batch: int = settings["scan"]["batch_size"]
        self._measure: Measurer = Measurer(
            self._model,
            [layer.name for layer in self.run.layers],
            precision=settings["compute"]["precision"],
            border=settings["scan"]["border"],
        )

    def row(self, picture: Path | Image.Image, units: NDArray[np.int64]) -> ImageRow:
        """Measure a picture, a file or one that is open, on these units. value, mean, y and x are exact.

        tail_p = (1 + images that have at least the value) / (n + 1): the picture counts as one more image. Images
        with the value's own code are counted by where they lie on average (`store.codes.images_reaching`), all others
        exactly.
        """
        return self._row(self._measured(self.pixels(picture))).take(units)

    def answer(self, pixels: NDArray[np.uint8]) -> tuple[ImageRow, list[dict[str, Any]]]:
        """Measure a picture, uint8 [channels, H, W], on all units, and return its predictions too.

        Those are the five likeliest classes as the table `predictions` has them, without image_id. There are none if
        the run's layers do not include the network's output.
        """
        from pipeline.stages.scan import top_predictions

        measured = self._measured(pixels)
        if measured.logits is None:
            return self._row(measured), []
        classes, probabilities = top_predictions(measured.logits[:1])
        labels = self._model.labels or ()
        rows = zip(classes[0].tolist(), probabilities[0].tolist(), strict=True)
        return self._row(measured), [
            {"rank": rank, "class_index": c, "label": labels[c] if c < len(labels) else None, "probability": p}
            for rank, (c, p) in enumerate(rows, 1)
        ]

    def _row(self, measured: BatchStatistics) -> ImageRow:
        """Return the first picture of a batch on all units."""
        value, mean, flat = measured.max[0].copy(), measured.mean[0].copy(), measured.argmax[0]
        widths = np.concatenate([np.full(layer.channels, layer.width, np.int32) for layer in self.run.layers])
        spatial = np.concatenate([np.full(layer.channels, layer.spatial) for layer in self.run.layers])
        y, x = (np.where(spatial, at, -1).astype(np.int32) for at in (flat // widths, flat % widths))
        return ImageRow(np.arange(self.run.units), value, mean, self._tail_p(value), y, x, self.run.n)

    def pixels(self, picture: Path | Image.Image) -> NDArray[np.uint8]:
        """Return a picture as the network sees it: uint8 [channels, height, width]."""
        image = open_picture(picture) if isinstance(picture, Path) else picture
        return self._model.preprocess.pixels(image)

    def as_stored(self, image: Image.Image) -> NDArray[np.uint8]:
        """Return a picture that the store keeps as the network saw it, at the network's own size."""
        p = self._model.preprocess
        image = image.convert("L" if p.channels == 1 else "RGB").resize((p.width, p.height))
        pixels = np.asarray(image).reshape(p.height, p.width, p.channels).transpose(2, 0, 1)
        return np.ascontiguousarray(pixels)

    def maps(self, pixels: NDArray[np.uint8], layer: str) -> NDArray[np.float32]:
        """Return the activation maps of one layer on a picture, uint8 [channels, H, W]: float32 [C, h, w].

        One call runs at a time.
        """
        import torch

        from pipeline import graph

        def tap(of: Layer, x: Tensor) -> None:
            if of.name == layer:
                self._map = x[0].float().cpu().numpy().copy()

        with self._maps_lock, torch.inference_mode():
            (wanted,) = (one for one in self._measure.layers if one.name == layer)
            graph.with_taps(self._measure.network, [wanted], tap)(self._measure.input(torch.from_numpy(pixels[None])))
            return self._map

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels of the network's outputs; empty if it has none."""
        return tuple(self._model.labels or ())

    def logits(self, pixels: NDArray[np.uint8], layer: str) -> NDArray[np.float32]:
        """Return the logits of one picture, uint8 [channels, H, W]: float32 [classes]. `layer` is explained next."""
        import torch

        suffix = self._suffix_of(layer)
        state = suffix.state(torch.from_numpy(pixels[None]))
        with torch.no_grad():
            found: NDArray[np.float32] = suffix.logits(state, state.value, torch.zeros(1, dtype=torch.int64))[0].numpy()
        return found

    def explain(
        self,
        pixels: NDArray[np.uint8],
        layer: str,
        target: int,
        against: int | None,
        method: str,
        baseline: NDArray[np.float32] | None,
        groups: int,
        ablate: int,
        most_steps: int | None = None,
    ) -> Explanation:
        """Explain one picture, uint8 [channels, H, W], by one layer: see `pipeline.explain.explain`."""
        from pipeline.explain import explain

        return explain(self._suffix_of(layer), pixels, target, against, method, baseline, groups, ablate, most_steps)

    def render_directions(self, layer: str, vectors: NDArray[np.float32], steps: int) -> NDArray[np.uint8]:
        """Render what directions of a layer, float32 [n, C], look for, in one batch: uint8 [n, 128, 128, 3].

        A bar on standard error shows the progress.
        """
        import torch

        from pipeline.featurevis import direction

        found = direction(self._model, layer, torch.from_numpy(vectors), steps=steps)
        images: NDArray[np.uint8] = found.images
        return images

    def _suffix_of(self, name: str) -> Suffix:
        from pipeline.explain import Suffix

        if self._suffix is None or self._suffix.layer.name != name:
            (layer,) = (one for one in self._measure.layers if one.name == name)
            self._suffix = Suffix(self._model, layer)
        return self._suffix

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

    row = run.model_row
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
