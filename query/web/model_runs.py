"""Runs of a store's models for visitors: dropped pictures, and activation maps. One at a time, behind a short queue."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from query import live
from query.explanation.explained import Explained, explained, layer_to_explain
from query.questions.image_units import ImageRow
from query.questions.unit_column import examples
from query.record.dense import Dense
from query.record.run_tables import Layer, Run
from query.record.unit import Unit
from query.scope import Scope
from query.web import pictures
from query.web.errors import PageError, busy, not_found
from store.errors import UsageError

WAITING = 8  # visitors that may wait for the model
KEPT = 32  # dropped pictures
GROUPS, UNITS, MOST_POSITIONS, MOST_STEPS = 4, 2, 1024, 32  # of an explanation
MAPS = 128 << 20  # bytes of activation maps that are kept
LARGEST = 32 << 20  # bytes of an upload
MOST_PIXELS = 40_000_000  # of an upload

T = TypeVar("T")


@dataclass(frozen=True)
class Dropped:
    """A picture that a visitor dropped, measured. It is kept in memory until the server ends, or others replace it."""

    sha256: str
    jpeg: bytes
    pixels: NDArray[np.uint8]
    row: ImageRow
    predictions: list[dict[str, Any]]


class ModelRuns:
    """Run models for the page."""

    def __init__(self, model_code: bool) -> None:
        self._model_code = model_code
        self._queue = threading.BoundedSemaphore(WAITING)
        self._runner = ThreadPoolExecutor(1, "model", initializer=_behind_pages)
        self._dropped: OrderedDict[tuple[str, str], Dropped] = OrderedDict()
        self._maps: OrderedDict[tuple[str, int | str, str], NDArray[np.float32]] = OrderedDict()
        self._lock = threading.Lock()
        self._warmed: set[str] = set()
        self._refused: dict[str, str] = {}  # why a model could not be opened, by fingerprint

    def why_not(self, run: Run) -> str:
        """Return why the model of a run cannot run here, or "" if nothing speaks against it."""
        if run.fingerprint in self._refused:
            return self._refused[run.fingerprint]
        if importlib.util.find_spec("torch") is None:
            return "torch is not installed"
        source = str(run.model_row["source"])
        if source.startswith("python:") and not self._model_code:
            return f"the model comes from {source}, which runs code: start the page with --allow-model-code"
        return ""

    def check(self, run: Run) -> None:
        """Raise PageError, which says why, if the model of a run cannot run here."""
        if reason := self.why_not(run):
            raise PageError(501, f"the model cannot run here: {reason}")

    def warm(self, scope: Scope, run: Run) -> None:
        """Begin to open the model of a run, so that it is there when it is first needed."""
        if run.fingerprint not in self._warmed and not self.why_not(run):
            self._warmed.add(run.fingerprint)
            self._runner.submit(self._probe, scope, run)  # if it fails, `why_not` tells the reason from now on

    def _probe(self, scope: Scope, run: Run) -> live.Probe:
        """Return the opened model. What speaks against opening it is kept, for nobody to try again."""
        try:
            return scope.probe(run)
        except UsageError as error:
            self._refused[run.fingerprint] = str(error)
        except Exception as error:  # whatever a model's code, or too little memory, may raise
            self._refused[run.fingerprint] = f"{type(error).__name__}: {error}".splitlines()[0]
        raise PageError(501, f"the model cannot run here: {self._refused[run.fingerprint]}")

    def drop(self, scope: Scope, run: Run, data: bytes) -> Dropped:
        """Measure an uploaded picture. Raises PageError: 415 if it is no picture, 503 if too many wait."""
        self.check(run)
        sha256 = hashlib.sha256(data).hexdigest()
        try:
            return self.dropped(run, sha256)
        except PageError:
            pass
        found = self._in_turn(lambda: self._measured(scope, run, sha256, data))
        with self._lock:
            self._dropped[run.fingerprint, sha256] = found
            while len(self._dropped) > KEPT:
                self._dropped.popitem(last=False)
        return found

    def _measured(self, scope: Scope, run: Run, sha256: str, data: bytes) -> Dropped:
        try:
            image = live.open_picture(data, MOST_PIXELS)
        except UsageError as error:
            raise PageError(415, f"{error}: drop a JPEG, PNG, WebP, GIF, BMP or TIFF picture") from error
        probe = self._probe(scope, run)
        pixels = probe.pixels(image)
        row, predictions = probe.answer(pixels)
        return Dropped(sha256, _jpeg(pixels), pixels, row, predictions)

    def dropped(self, run: Run, sha256: str) -> Dropped:
        """Return a picture that was dropped. Raises PageError if it is gone."""
        with self._lock:
            found = self._dropped.get((run.fingerprint, sha256))
            if found is None:
                raise not_found("this picture is gone: dropped pictures are kept in memory only; drop it again")
            self._dropped.move_to_end((run.fingerprint, sha256))
            return found

    def maps(self, scope: Scope, dense: Dense, picture: int | str, layer: Layer) -> NDArray[np.float32]:
        """Return the maps of a layer's units on a picture (an image_id, or the SHA-256 of a dropped one).

        float32 [C, h, w]. Raises PageError or UsageError if the model cannot run.
        """
        self.check(dense.run)
        key = (dense.run.fingerprint, picture, layer.name)
        with self._lock:
            if key in self._maps:
                self._maps.move_to_end(key)
                return self._maps[key]
        maps = self._in_turn(
            lambda: self._probe(scope, dense.run).maps(self._pixels(scope, dense, picture), layer.name)
        )
        with self._lock:
            self._maps[key] = maps
            while len(self._maps) > 1 and sum(one.nbytes for one in self._maps.values()) > MAPS:
                self._maps.popitem(last=False)
        return maps

    def why(
        self, scope: Scope, dense: Dense, picture: int | str, layer: str | None, target: str | None, against: str | None
    ) -> Explained:
        """Explain a picture by one layer. Raises PageError or UsageError if the model cannot run, or for a wrong class.

        Steps and neuron groups are bounded, so that nobody waits long for another visitor's question.
        """
        self.check(dense.run)
        chosen = layer_to_explain(dense.run, layer)
        groups = GROUPS if chosen.has_places and chosen.positions <= MOST_POSITIONS else 0
        name = dense.run.image_rows(np.array([picture]), "path")["path"][0].as_py() if isinstance(picture, int) else ""

        def work() -> Explained:
            return explained(
                dense, self._probe(scope, dense.run), name or "picture.jpg",
                picture if isinstance(picture, int) else None, self._pixels(scope, dense, picture), target, against,
                chosen.name, groups=groups, ablate=UNITS, most_steps=MOST_STEPS,
            )  # fmt: skip

        return self._in_turn(work)

    def map_picture(self, scope: Scope, dense: Dense, picture: int | str, unit: Unit) -> bytes:
        """Return a unit's activation map on a picture, as a PNG to lay over it.

        Where the model cannot run it is the stored one, which the store keeps of a unit's highest examples.
        """
        if not unit.layer.has_places:
            raise not_found(f"the positions of layer {unit.layer.name} are no places of the picture")
        try:
            maps = self.maps(scope, dense, picture, unit.layer)
        except UsageError:
            rank = _rank(unit, picture) if isinstance(picture, int) else None
            if rank is None:
                raise
            return pictures.stored_map(unit, rank)
        return pictures.overlay(pictures.scaled(maps[unit.channel]))

    def _pixels(self, scope: Scope, dense: Dense, picture: int | str) -> NDArray[np.uint8]:
        if isinstance(picture, str):
            return self.dropped(dense.run, picture).pixels
        image = live.dataset_picture(dense.run, picture)
        if image is None:  # the stored picture is what the network saw, but for JPEG
            image = Image.open(io.BytesIO(pictures.photograph(dense, picture)), formats=["JPEG"])
            return self._probe(scope, dense.run).as_stored(image)
        return self._probe(scope, dense.run).pixels(image)

    def _in_turn(self, work: Callable[[], T]) -> T:
        """Run the model when those who came before are done. Raises PageError if too many wait."""
        if not self._queue.acquire(blocking=False):
            raise busy("the model is busy with other visitors' pictures: try again in a few seconds")
        try:
            return self._runner.submit(work).result()
        finally:
            self._queue.release()

    def close(self) -> None:
        self._runner.shutdown(wait=False, cancel_futures=True)


def _behind_pages() -> None:
    """Let this thread run when pages leave the processor to it, where the system can do that for one thread."""
    with suppress(OSError, AttributeError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)


def _rank(unit: Unit, image_id: int) -> int | None:
    """Return the rank of an image among a unit's stored highest examples, or None."""
    stored = examples(unit, "highest")
    ids: list[int] = stored["image_id"].to_pylist()
    return int(stored["rank"][ids.index(image_id)].as_py()) if image_id in ids else None


def _jpeg(pixels: NDArray[np.uint8]) -> bytes:
    image = Image.fromarray(pixels[0] if len(pixels) == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0)))
    return pictures.encoded(image, "JPEG", 90)
