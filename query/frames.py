"""Columns of the frames that questions answer with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from .run import Run


def nullable(places: NDArray[np.int32]) -> pd.Series[Any]:
    """Integers, <NA> where negative."""
    return pd.Series(pd.arrays.IntegerArray(places, places < 0))


def text(values: Sequence[str | None]) -> pd.Series[Any]:
    return pd.Series(list(values), dtype="str")


def image_columns(run: Run, image_ids: NDArray[np.int64]) -> dict[str, Any]:
    """image_id, path, label, class_index."""
    images = run.describe_images(image_ids)
    return {
        "image_id": image_ids,
        "path": text(images["path"]),
        "label": text(images["label"]),
        "class_index": pd.Series(images["class_index"], dtype="Int32"),
    }
