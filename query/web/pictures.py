"""The pictures of the page: photographs as the network saw them, feature visualizations, tiles, activation maps."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from query.presentation.cropping import from_dataset
from query.presentation.drawing import HEAT
from query.record import stored_pictures
from query.record.dense import Dense
from query.record.run_tables import Layer
from query.record.unit import Unit
from query.web.errors import not_found
from store import hdf5, layout, user_cache
from store.errors import UsageError

FORMAT = 1  # of derived pictures: another one for every change of how they are made
CELL, ACROSS = 112, 8  # pixels of a unit in a tile, and units across and down
UNITS = ACROSS * ACROSS
LEAST = 40  # pixels of the network's input that a small picture shows
MAP = 112  # pixels of the longer side of an activation map
BLANK = (128, 128, 128)  # of a unit that has no picture
_QUALITY = 84  # of tiles: JPEG, which is encoded five times faster than WebP

Place = tuple[Path, str, int]  # file, dataset and row of a feature visualization


def folder() -> Path:
    """Return where derived pictures are kept. All of it may be deleted at any time."""
    return user_cache.folder("pictures") / f"{FORMAT}"


def photograph(dense: Dense, image_id: int) -> bytes:
    """Return a picture of the dataset as the network saw it, as JPEG.

    The stored one is returned as it is. A picture that the store does not keep is read from the dataset. Raises
    PageError if its files are not at hand.
    """
    if not 0 <= image_id < len(dense.run.images.accepted):
        raise not_found(f"dataset {dense.run.dataset} has images 0 to {len(dense.run.images.accepted) - 1}")
    stored = dense.kept_jpeg(image_id)
    if stored is not None:
        return stored

    def made() -> bytes:
        shown = from_dataset(dense.run, image_id)
        if shown is None:
            raise not_found(f"image {image_id} is not kept in the store, and its file is not at hand")
        return encoded(shown, "JPEG", 90)

    return _cached(dense, f"photograph/{image_id}.jpg", made)


def visualization(unit: Unit, kind: str, direction: str, repeat: int) -> bytes:
    """Return a feature visualization as WebP. Raises UsageError if there is none."""
    return encoded(Image.fromarray(stored_pictures.visualization(unit, kind, direction, repeat)), "WEBP", 92)


def tile(dense: Dense, layer: Layer, number: int) -> bytes:
    """Return the tile with 64 units of a layer, from unit 64 * number on, eight across and down, as JPEG.

    Each unit is its feature visualization, or its strongest photograph if none was rendered, or grey.
    """
    if not 0 <= number * UNITS < layer.channels:
        raise not_found(f"layer {layer.name} has tiles 0 to {(layer.channels - 1) // UNITS}")
    channels = range(number * UNITS, min((number + 1) * UNITS, layer.channels))
    return _cached(dense, f"tiles/{layer.index}/{number}.jpg", lambda: _tile(dense, layer, channels))


def _tile(dense: Dense, layer: Layer, channels: Sequence[int]) -> bytes:
    canvas = Image.new("RGB", (ACROSS * CELL, ACROSS * CELL), BLANK)
    rendered, best = visualizations(dense, layer), best_images(dense, layer)
    for cell, channel in enumerate(channels):
        square = _square(dense, rendered.get(channel), best.get(channel, ()))
        if square is not None:
            canvas.paste(square, (cell % ACROSS * CELL, cell // ACROSS * CELL))
    return encoded(canvas, "JPEG", _QUALITY)


def thumbnail(dense: Dense, unit: Unit, besides: int | None = None) -> bytes:
    """Return one unit's picture as in its tile, as JPEG. The photograph of the image_id `besides` is not used."""

    def made() -> bytes:
        rendered, best = visualizations(dense, unit.layer), best_images(dense, unit.layer)
        square = _square(dense, rendered.get(unit.channel), best.get(unit.channel, ()), besides)
        return encoded(square or Image.new("RGB", (CELL, CELL), BLANK), "JPEG", _QUALITY)

    first = best_images(dense, unit.layer).get(unit.channel, ())[:1]
    second = ".2" if first and first[0].image_id == besides else ""
    return _cached(dense, f"thumbnails/{unit.layer.index}/{unit.channel}{second}.jpg", made)


def _square(
    dense: Dense, place: Place | None, examples: Sequence[Best], besides: int | None = None
) -> Image.Image | None:
    """Return a unit's feature visualization, or its best photograph, as a square of CELL pixels."""
    image = _rendered(dense, place) if place else None
    image = image or _best(dense, examples, besides)
    if image is None:
        return None
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.resize((CELL, CELL), Image.Resampling.BOX, (left, top, left + side, top + side), 2.0)


def visualizations(dense: Dense, layer: Layer) -> dict[int, Place]:
    """Return the place of the first positive feature visualization of each channel of a layer that has one."""
    return dense.remember(("visualizations", layer.index), lambda: _visualizations(dense, layer))


def _visualizations(dense: Dense, layer: Layer) -> dict[int, Place]:
    run = dense.run
    if not run.has("visualizations"):
        shards = run.files.rendering.get(layer.name, ())
        return {c: (one.path, "images", i) for one in reversed(shards) for i, c in reversed([*enumerate(one.channels)])}
    columns = ("channel", "kind", "direction", "repeat", "h5_file", "h5_dataset", "h5_index")
    table = run.lookup(run.only("visualizations")).rows(columns, {"layer": layer.name, "direction": "positive"})
    places: dict[int, Place] = {}
    for row in sorted(table.to_pylist(), key=lambda r: (r["kind"] != "channel", r["kind"], r["repeat"])):
        if row["kind"] != "deepdream":
            path = run.array(row["h5_file"])
            places.setdefault(row["channel"], (path, row["h5_dataset"], row["h5_index"]))
    return places


@dataclass(frozen=True)
class Best:
    """One of a unit's strongest examples, and what its strongest position sees: y0, x0, y1, x1 in input pixels."""

    image_id: int
    box: tuple[int, int, int, int] | None


def best_images(dense: Dense, layer: Layer) -> dict[int, tuple[Best, ...]]:
    """Return the two strongest examples of each channel of a layer."""
    return dense.remember(("best images", layer.index), lambda: _best_images(dense, layer))


def _best_images(dense: Dense, layer: Layer) -> dict[int, tuple[Best, ...]]:
    run, found = dense.run, dict[int, tuple[Best, ...]]()
    lookup = run.lookup(run.only("top_examples"))
    columns = ("channel", "image_id", "box_y0", "box_x0", "box_y1", "box_x1")
    for rank in (1, 2):
        table = lookup.rows(columns, {"layer": layer.name, "direction": "highest", "rank": rank})
        for channel, image_id, *box in zip(*(table[name].to_pylist() for name in columns), strict=True):
            one = Best(image_id, None if None in box else (box[0], box[1], box[2], box[3]))
            found[channel] = (*found.get(channel, ()), one)
    return found


def rendering(dense: Dense, unit: Unit) -> bytes:
    """Return a unit's feature visualization before its stage is complete, as WebP."""
    place = visualizations(dense, unit.layer).get(unit.channel)
    image = _rendered(dense, place) if place else None
    if image is None:
        raise not_found(f"unit {unit.name} is not rendered yet")
    return encoded(image, "WEBP", 92)


def _rendered(dense: Dense, place: Place) -> Image.Image | None:
    path, name, index = place
    if not path.exists():  # the stage was completed a moment ago, and the page is about to look again
        return None
    stored = dense.dataset(path, name, "uint8", None, None, None, None)
    if not 0 <= index < len(stored):
        raise dense.run.inconsistent(f"{path.name} does not have picture {index}")
    pixels = stored[index]
    return Image.fromarray(np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels)


def _best(dense: Dense, examples: Sequence[Best], besides: int | None) -> Image.Image | None:
    """Return the strongest photograph but `besides`, cropped to what the unit's strongest position sees of it."""
    best = next((one for one in examples if one.image_id != besides), None)
    if best is None:
        return None
    try:
        image = Image.open(io.BytesIO(photograph(dense, best.image_id)), formats=["JPEG"])
        cut = _crop(best.box, dense.run.input_size)
        if cut is None:
            image.draft("RGB", (CELL, CELL))
            return image.convert("RGB")
        down, across = image.height / dense.run.input_size[0], image.width / dense.run.input_size[1]
        y0, x0, y1, x1 = cut
        return image.convert("RGB").crop((round(x0 * across), round(y0 * down), round(x1 * across), round(y1 * down)))
    except (UsageError, OSError):
        return None


def _crop(box: tuple[int, int, int, int] | None, size: tuple[int, int]) -> tuple[int, int, int, int] | None:
    """Return the square around a receptive field that a small picture shows, None for the whole picture.

    It is at least 40 pixels wide, so that one sees what the part is of.
    """
    if box is None:
        return None
    y0, x0, y1, x1 = box
    side = max(y1 - y0, x1 - x0, LEAST)
    if side > 0.8 * min(size):
        return None
    top, left = (
        min(max((low + high - side) // 2, 0), whole - side)
        for low, high, whole in ((y0, y1, size[0]), (x0, x1, size[1]))
    )
    return top, left, top + side, left + side


def stored_map(unit: Unit, rank: int) -> bytes:
    """Return a unit's activation map on its example of this rank, from 1, as a PNG to lay over the photograph."""
    relative = layout.example_images(unit.run.name)
    if relative in unit.run.files.arrays and unit.layer.spatial:
        with hdf5.reading(unit.run.array(relative)) as file:
            stored = hdf5.dataset(file, f"maps/{unit.layer.name}").expect(
                "uint8", unit.layer.channels, None, None, None
            )
            if 1 <= rank <= stored.shape[1]:
                return overlay(stored[unit.channel, rank - 1])
    raise not_found(f"unit {unit.name} has no stored activation map {rank}")


def maps_kept(dense: Dense, layer: Layer) -> int:
    """Return of how many of a unit's highest examples the store keeps activation maps."""
    relative = layout.example_images(dense.run.name)
    if relative not in dense.run.files.arrays or not layer.has_places:
        return 0
    stored = dense.dataset(dense.run.array(relative), f"maps/{layer.name}", "uint8", layer.channels, None, None, None)
    return stored.shape[1]


def overlay(strength: NDArray[np.uint8]) -> bytes:
    """Return a map, uint8 [h, w], as a PNG of one colour that is opaque where the map is high."""
    height, width = strength.shape
    scale = MAP / max(height, width)
    size = (max(round(width * scale), 1), max(round(height * scale), 1))
    smooth = np.asarray(Image.fromarray(strength).resize(size, Image.Resampling.BICUBIC), np.float32) / 255
    alpha = np.round(smooth**1.5 * 0.62 * 255).astype(np.uint8)
    pixels = np.empty((*alpha.shape, 4), np.uint8)
    pixels[..., :3] = HEAT
    pixels[..., 3] = alpha
    return encoded(Image.fromarray(pixels, "RGBA"), "PNG", None)


def scaled(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Scale a map as stored ones are: 0 stands for its minimum or for zero, whichever is lower, 255 for its maximum."""
    low, high = min(float(values.min()), 0.0), float(values.max())
    result: NDArray[np.uint8] = np.round((values - low) / max(high - low, 1e-12) * 255).astype(np.uint8)
    return result


def encoded(image: Image.Image, form: str, quality: int | None) -> bytes:
    """Return a picture as the bytes of a file."""
    buffer = io.BytesIO()
    fast: dict[str, Any] = {"WEBP": {"method": 1}, "PNG": {"compress_level": 1}}.get(form, {})
    image.save(buffer, form, **fast | ({} if quality is None else {"quality": quality}))
    return buffer.getvalue()


def _cached(dense: Dense, name: str, make: Callable[[], bytes]) -> bytes:
    """Return a derived picture, made once for each state of the run and kept in the user's cache."""
    path = folder() / dense.run.files.digest[:32] / name
    with _making(path):  # others who want the same wait for it
        try:
            return path.read_bytes()
        except OSError:
            made = make()
            user_cache.write_bytes(path, made)
            return made


_locks: WeakValueDictionary[Path, threading.Lock] = WeakValueDictionary()
_locks_lock = threading.Lock()


@contextmanager
def _making(path: Path) -> Iterator[None]:
    with _locks_lock:
        one = _locks.get(path)
        if one is None:
            one = _locks[path] = threading.Lock()
    with one:
        yield
