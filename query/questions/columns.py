"""Columns of the frames that questions answer with: arrays, for a frame of Series aligns their indices first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray
from pandas.api.extensions import ExtensionArray

from query.record.run_tables import Run


def nullable(places: NDArray[np.int32]) -> pd.arrays.IntegerArray:
    """Integers, <NA> where negative."""
    return pd.arrays.IntegerArray(places, places < 0)


def text(values: Sequence[str | None]) -> pd.Series[Any]:
    return pd.Series(list(values), dtype="str")


def unit_columns(run: Run, units: NDArray[np.int64]) -> dict[str, Any]:
    """model, layer, channel of units by their places in unit order."""
    index = run.layers_of(units)
    names = np.array([layer.name for layer in run.layers], dtype=object)
    return {
        "model": strings(pa.chunked_array([pa.repeat(run.model, len(units))])),
        "layer": strings(pa.chunked_array([pa.array(names[index], pa.string())])),
        "channel": units - run.starts[index],
    }


def image_columns(run: Run, image_ids: NDArray[np.int64]) -> dict[str, Any]:
    """image_id, path, label, class_index."""
    images = run.describe_images(image_ids)
    return {
        "image_id": image_ids,
        "path": strings(images["path"]),
        "label": strings(images["label"]),
        "class_index": nullable(images["class_index"].fill_null(-1).to_numpy().astype(np.int32)),
    }


def strings(column: pa.ChunkedArray) -> ExtensionArray:
    """Arrow strings as pandas' own, without a Python object each."""
    found: ExtensionArray = pd.array(column, dtype="str")
    return found
