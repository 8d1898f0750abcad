"""Which units fire for several classes that are unlike each other."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from query.questions.columns import text, unit_columns
from query.record.run_tables import Run
from store.errors import UsageError

MIN_IMAGES = 2  # images of a class that a unit needs to fire for it
DEVIATIONS = 3  # standard deviations by which these must exceed what chance would put among the unit's first images


@dataclass(frozen=True)
class _Fired:
    """Pairs of a unit and a class that it fires for, sorted by unit. All arrays are [P].

    `class_row` int64 is the class's row in `Run.classes`; `share` float64 is the share of the unit's stored highest
    images that are of the class.
    """

    unit: NDArray[np.int64]
    class_row: NDArray[np.int64]
    share: NDArray[np.float64]


def polysemantic_units(run: Run, units: NDArray[np.int64], k: int | None) -> pd.DataFrame:
    """Return units by spread falling, then unit order; all of them if k is None. Columns: see the declaration.

    A unit fires for a class if at least two of its stored highest images are of the class, and three standard
    deviations more of them than among as many images drawn from the dataset. `share` is the share of the unit's stored
    highest images that are of such classes, `classes` is how many they are, and `labels` names the first three.
    spread = share x the mean distance of the classes of two of these images (Rao's quadratic entropy). The distance of
    two classes is 1 - the correlation of their mean maxima over the units of the run's last layer, clipped to 0..1. So
    a unit for one class, for similar classes or for no class is near 0. If no unit of the run fires for any class, the
    answer is empty.
    """
    if len(run.classes) < 2:
        raise UsageError(f"dataset {run.dataset} has no two classes: whether a unit mixes them cannot be told")
    fired = _fired(run)
    if not len(fired.unit):
        units = units[:0]
    share = np.bincount(fired.unit, fired.share, run.units)
    spread = _entropy(run, fired) / np.maximum(share, 1e-12)  # share x the entropy of the renormalized shares
    classes = np.bincount(fired.unit, minlength=run.units)
    order = units[np.argsort(-spread[units], kind="stable")][:k]
    return pd.DataFrame(
        {
            **unit_columns(run, order),
            "rank": np.arange(1, len(order) + 1),
            "spread": spread[order],
            "share": share[order],
            "classes": classes[order],
            "labels": text(_labels(run, order, fired)),
            "n": run.n,
        }
    )


def _fired(run: Run) -> _Fired:
    """Find the classes that each unit fires for."""
    classes = len(run.classes)
    table = run.rows("top_examples", "layer, channel, image_id", "direction = 'highest'")
    unit = run.unit_indices(table)
    image_ids = table["image_id"].to_numpy()
    run.check_images(image_ids, len(run.images.class_index))
    class_index = run.images.class_index[image_ids]
    indices = np.array([c.index for c in run.classes])
    class_row = np.searchsorted(indices, class_index)
    labelled = (class_row < classes) & (indices[np.minimum(class_row, classes - 1)] == class_index)
    pair, count = np.unique(unit[labelled] * classes + class_row[labelled], return_counts=True)
    total = np.maximum(np.bincount(unit, minlength=run.units), 1)
    unit, class_row = pair // classes, pair % classes
    base = np.array([len(run.images.of_class(c.index)) for c in run.classes]) / run.n
    chance = total[unit] * base[class_row]
    kept = (count >= MIN_IMAGES) & (count - chance > DEVIATIONS * np.sqrt(chance * (1 - base[class_row])))
    return _Fired(unit[kept], class_row[kept], (count / total[unit])[kept])


def _entropy(run: Run, fired: _Fired) -> NDArray[np.float64]:
    """Sum share x share x distance over all pairs of a unit's classes: float64 [U]."""
    result = np.zeros(run.units)
    if not len(fired.unit):
        return result
    distance = _distances(run)
    starts = np.flatnonzero(np.diff(fired.unit, prepend=-1))
    for first, last in zip(starts, np.append(starts[1:], len(fired.unit)), strict=True):
        rows, shares = fired.class_row[first:last], fired.share[first:last]
        result[fired.unit[first]] = shares @ distance[np.ix_(rows, rows)] @ shares
    return result


def _distances(run: Run) -> NDArray[np.float64]:
    """Return 1 - correlation of classes by their mean maxima over the last layer's units, in 0..1: float64 [K, K]."""
    layer = run.layers[-1]
    table = run.rows("class_stats", "channel, class_index, mean_max", "layer = ?", [layer.name])
    indices = np.array([c.index for c in run.classes])
    means = np.zeros((len(indices), layer.channels))
    class_row = np.searchsorted(indices, table["class_index"].to_numpy())
    means[class_row, table["channel"].to_numpy()] = run.z(
        table["mean_max"].to_numpy(), layer.start + table["channel"].to_numpy().astype(np.int64)
    )
    means -= means.mean(0)  # what all classes share distinguishes none of them
    means -= means.mean(1, keepdims=True)
    length = np.linalg.norm(means, axis=1, keepdims=True)
    means = np.divide(means, length, out=np.zeros_like(means), where=length > 0)
    distance: NDArray[np.float64] = np.clip(1 - means @ means.T, 0, 1)
    np.fill_diagonal(distance, 0)
    return distance


def _labels(run: Run, units: NDArray[np.int64], fired: _Fired) -> list[str | None]:
    """Name the first three classes of each unit, those with most images first."""
    labels: list[str | None] = []
    for unit in units:
        first, last = np.searchsorted(fired.unit, [unit, unit + 1])
        order = np.argsort(-fired.share[first:last], kind="stable")[:3]
        labels.append("; ".join(run.classes[int(r)].label for r in fired.class_row[first:last][order]) or None)
    return labels
