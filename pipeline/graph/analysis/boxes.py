"""Receptive fields of map positions, as boxes in the network's input."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.graph import Layer


def boxes(layer: Layer, y: NDArray[Any], x: NDArray[Any], size: tuple[int, int]) -> dict[str, Any]:
    """Return the receptive fields of positions (y, x) as boxes: box_y0, box_x0, box_y1, box_x1, int32 [n] each.

    y and x are int [n]. Boxes are in pixels of the network's input, whose `size` is (height, width), and are clipped to
    it; the last row and column are exclusive. A global field is the whole input. In a layer that is not spatial, each
    column is a list of None.
    """
    if not layer.spatial:
        return {f"box_{edge}": [None] * len(y) for edge in ("y0", "x0", "y1", "x1")}
    bounds = {}
    for axis, position, limit in (("y", y, size[0]), ("x", x, size[1])):
        if layer.rf_size is None or layer.rf_stride is None or layer.rf_offset is None:
            first, last = np.zeros(len(position), np.int64), np.full(len(position), limit)
        else:
            first = layer.rf_offset + position.astype(np.int64) * layer.rf_stride
            last = first + layer.rf_size
        bounds[f"box_{axis}0"] = np.clip(first, 0, limit).astype(np.int32)
        bounds[f"box_{axis}1"] = np.clip(last, 0, limit).astype(np.int32)
    return bounds
