"""Columns of the frames that questions answer with.

They are arrays, not Series: a frame made of Series first aligns their indices.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray
from pandas.api.extensions import ExtensionArray

from query.record.run_tables import Run


def nullable(values: NDArray[np.int32]) -> pd.arrays.IntegerArray:
    """Return integers that are <NA> where negative."""
    return pd.arrays.IntegerArray(values, values < 0)


def text(values: Sequence[str | None]) -> pd.Series[Any]:
    return pd.Series(list(values), dtype="str")


def unit_columns(run: Run, units: NDArray[np.int64]) -> dict[str, Any]:
    """Return model, layer and channel of units by their unit indices."""
    layer_indices = run.layers_of(units)
    names = np.array([layer.name for layer in run.layers], dtype=object)
    return {
        "model": strings(pa.chunked_array([pa.repeat(run.model, len(units))])),
        "layer": strings(pa.chunked_array([pa.array(names[layer_indices], pa.string())])),
        "channel": units - run.starts[layer_indices],
    }


def image_columns(run: Run, image_ids: NDArray[np.int64]) -> dict[str, Any]:
    """Return image_id, path, label and class_index of images."""
    images = run.describe_images(image_ids)
    return {
        "image_id": image_ids,
        "path": strings(images["path"]),
        "label": strings(images["label"]),
        "class_index": nullable(images["class_index"].fill_null(-1).to_numpy().astype(np.int32)),
    }


def ranked_images(run: Run, image_ids: NDArray[np.int64], **columns: Any) -> pd.DataFrame:
    """Return a frame of rank, image_id, path, label, class_index, then these columns, then n."""
    images = image_columns(run, image_ids)
    return pd.DataFrame({"rank": np.arange(1, len(image_ids) + 1), **images, **columns, "n": run.n})


def strings(column: pa.ChunkedArray) -> ExtensionArray:
    """Turn Arrow strings into pandas' own without making a Python object of each."""
    array: ExtensionArray = pd.array(column, dtype="str")
    return array
