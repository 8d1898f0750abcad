"""Pictures kept in a store: feature visualizations, and example pictures with their activation maps."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from query.arguments import spelled
from query.record.unit import Unit
from store import hdf5, layout
from store.errors import UsageError, shortened

Pixels = NDArray[np.uint8]


def visualization(unit: Unit, kind: str, direction: str, repeat: int) -> Pixels:
    """Read a feature visualization, uint8 [H, W, 3]."""
    if not unit.run.has("visualizations"):
        raise UsageError(f"run {unit.run.name} has no visualizations: run its visualize stage (`unitscope run`)")
    rows = unit.run.rows(
        "visualizations", "kind, direction, repeat, h5_file, h5_dataset, h5_index", "layer = ? AND channel = ?",
        [unit.layer.name, unit.channel], "ORDER BY kind, direction DESC, repeat",
    ).to_pylist()  # fmt: skip
    for row in rows:
        if (row["kind"], row["direction"], row["repeat"]) == (kind, direction, repeat):
            with hdf5.reading(unit.run.array(row["h5_file"])) as file:
                stored = hdf5.dataset(file, row["h5_dataset"]).expect("uint8", None, None, None, None)
                if not 0 <= row["h5_index"] < len(stored):
                    raise unit.run.inconsistent(f"{row['h5_file']} does not have picture {row['h5_index']}")
                return np.asarray(stored[row["h5_index"]])
    asked = " ".join(shortened(spelled(part)) for part in (kind, direction, repeat))
    there = ", ".join(f"{r['kind']} {r['direction']} {r['repeat']}" for r in rows) or "none"
    raise UsageError(f"unit {unit.name} has no visualization {asked}; it has {there}")


@dataclass(frozen=True)
class Example:
    """A picture as the network saw it, and the unit's activation map on it.

    `pixels` is uint8 [H, W, 3]; `heat` is uint8 [h, w], scaled so that 255 is the map's maximum.
    """

    pixels: Pixels
    heat: Pixels | None


def examples(unit: Unit, image_ids: NDArray[np.int64], maps: bool) -> list[Example | None]:
    """Read the kept pictures of some images.

    An image beyond the config's `[examples] count` is None, and all are if the examples stage has not run. With `maps`
    the images must be the unit's highest examples from the first on, because activation maps are stored by rank.
    """
    relative = layout.example_images(unit.run.name)
    if relative not in unit.run.files.arrays:
        return [None] * len(image_ids)
    with hdf5.reading(unit.run.array(relative)) as file:
        known = hdf5.dataset(file, "image_ids").expect("int64", None)[()]
        offsets = hdf5.dataset(file, "offsets").expect("int64", len(known) + 1)[()]
        jpeg = hdf5.dataset(file, "jpeg").expect("uint8", None)
        heat = np.zeros((0, 1, 1), np.uint8)
        if maps and unit.layer.spatial:
            stored = hdf5.dataset(file, f"maps/{unit.layer.name}")
            heat = stored.expect("uint8", unit.layer.channels, None, None, None)[unit.channel]
        kept: list[Example | None] = []
        for rank, image_id in enumerate(image_ids):
            row = int(np.searchsorted(known, image_id))
            if row == len(known) or known[row] != image_id:
                kept.append(None)
                continue
            pixels = _decode(jpeg[offsets[row] : offsets[row + 1]])
            kept.append(Example(pixels, heat[rank] if rank < len(heat) else None))
    return kept


def _decode(data: NDArray[np.uint8]) -> Pixels:
    try:
        with Image.open(io.BytesIO(data.tobytes()), formats=["JPEG"]) as image:
            return np.asarray(image.convert("RGB"))
    except OSError as error:
        raise UsageError(f"a stored example is no JPEG picture ({error}): see `unitscope verify`") from error
