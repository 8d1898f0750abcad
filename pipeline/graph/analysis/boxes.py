"""Where in the network's input a position of a map looks."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.graph import Layer
from pipeline.models import Preprocess


def boxes(layer: Layer, y: NDArray[Any], x: NDArray[Any], preprocess: Preprocess) -> dict[str, NDArray[np.int32]]:
    """Receptive fields of positions (y, x) in pixels of the network's input, clipped: box_y0, box_x0, box_y1, box_x1.

    y and x: int [n]; the last row and column are exclusive. A global field is the whole input.
    """
    found = {}
    for axis, place, size in (("y", y, preprocess.height), ("x", x, preprocess.width)):
        if layer.rf_size is None or layer.rf_stride is None or layer.rf_offset is None:
            first, last = np.zeros(len(place), np.int64), np.full(len(place), size)
        else:
            first = layer.rf_offset + place.astype(np.int64) * layer.rf_stride
            last = first + layer.rf_size
        found[f"box_{axis}0"] = np.clip(first, 0, size).astype(np.int32)
        found[f"box_{axis}1"] = np.clip(last, 0, size).astype(np.int32)
    return found
