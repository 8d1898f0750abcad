"""Which units are out of the ordinary: dead, always on, selective for a class, or for several that are unlike."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from query.questions.columns import text, unit_columns
from query.record.run_tables import Run
from store.errors import UsageError

ALWAYS = 0.99  # share of positions above zero from which a unit counts as always on
TWICE = 2  # images of a class that a unit needs to fire for it
SURE = 3  # and so many deviations more of them than chance would put among the unit's first


def unit_states(run: Run, units: NDArray[np.int64]) -> pd.DataFrame:
    """model, layer, channel, state, fraction_active, saturated, maximum, n of units that hardly tell images apart.

    state: `dead` (never above zero; signed: constant), `always on` (99 % of all positions above zero, in layers that
    are never negative), `clipped` (its maximum sits at the clip on half of the images or more). In unit order.
    """
    s = run.statistics
    dead = s.dead[units] > 0
    on = ~dead & (s.fraction_active[units] >= ALWAYS) & ~run.signed[units]
    clipped = ~dead & (s.saturated[units] >= 0.5)
    kept = np.flatnonzero(dead | on | clipped)
    state = np.select([dead, on], ["dead", "always on"], "clipped")[kept]
    found = units[kept]
    return pd.DataFrame(
        {
            **unit_columns(run, found),
            "state": text(state.tolist()),
            "fraction_active": s.fraction_active[found],
            "saturated": s.saturated[found],
            "maximum": s.maximum[found],
            "n": run.n,
        }
    )


def class_selectivity(run: Run, units: NDArray[np.int64], k: int | None) -> pd.DataFrame:
    """model, layer, channel, rank, selectivity, top_class, label, n: by selectivity falling, then unit order.

    Units without a selectivity (signed layers, under two classes of 10 images, dead) are left out. k=None: all.
    """
    s = run.statistics
    units = units[~np.isnan(s.selectivity[units])]
    order = units[np.argsort(-s.selectivity[units], kind="stable")][:k]
    labels = {c.index: c.label for c in run.classes}
    top = s.top_class[order]
    return pd.DataFrame(
        {
            **unit_columns(run, order),
            "rank": np.arange(1, len(order) + 1),
            "selectivity": s.selectivity[order],
            "top_class": pd.Series(top).astype("Int32"),
            "label": text([labels.get(int(c)) if not np.isnan(c) else None for c in top]),
            "n": run.n,
        }
    )


def polysemantic_units(run: Run, units: NDArray[np.int64], k: int | None) -> pd.DataFrame:
    """model, layer, channel, rank, spread, share, classes, labels, n: by spread falling, then unit order.

    Of a unit's stored highest images, `share` are of classes it fires for: two images or more, and three deviations
    more than so many images drawn from the dataset would have. `classes` counts them; `labels` names the first three.
    spread = share x the mean distance of two of these images' classes (Rao's quadratic entropy), where the distance of
    two classes is 1 - the correlation of their mean maxima over the units of the run's last layer, 0 at least and 1 at
    most. A unit for one class, or for classes that are alike, is near 0; so is one that asks for no class at all.
    """
    if len(run.classes) < 2:
        raise UsageError(f"dataset {run.dataset} has no two classes: whether a unit mixes them cannot be told")
    place, row, count, total = _tail_classes(run, len(run.classes))
    base = np.array([len(run.images.of_class(c.index)) for c in run.classes]) / run.n
    chance = total[place] * base[row]
    kept = (count >= TWICE) & (count - chance > SURE * np.sqrt(chance * (1 - base[row])))
    place, row, weight = place[kept], row[kept], (count / total[place])[kept]
    share = np.bincount(place, weight, run.units)
    spread = _rao(run, place, row, weight) / np.maximum(share, 1e-12)  # share * Q of the renormalized shares
    number = np.bincount(place, minlength=run.units)
    order = units[np.argsort(-spread[units], kind="stable")][:k]
    return pd.DataFrame(
        {
            **unit_columns(run, order),
            "rank": np.arange(1, len(order) + 1),
            "spread": spread[order],
            "share": share[order],
            "classes": number[order],
            "labels": text(_labels(run, order, place, row, weight)),
            "n": run.n,
        }
    )


def _tail_classes(run: Run, classes: int) -> tuple[NDArray[Any], ...]:
    """Of every unit and class among its highest examples: unit, row of the class, images; and images by unit."""
    table = run.rows("top_examples", "layer, channel, image_id", "direction = 'highest'")
    place = run.places(table)
    class_index = run.images.class_index[table["image_id"].to_numpy()]
    indices = np.array([c.index for c in run.classes])
    row = np.searchsorted(indices, class_index)
    labelled = (row < classes) & (indices[np.minimum(row, classes - 1)] == class_index)
    key, count = np.unique(place[labelled] * classes + row[labelled], return_counts=True)
    return key // classes, key % classes, count, np.maximum(np.bincount(place, minlength=run.units), 1)


def _rao(run: Run, place: NDArray[Any], row: NDArray[Any], weight: NDArray[Any]) -> NDArray[np.float64]:
    """Sum over pairs of a unit's classes of weight x weight x distance, float64 [U]; entries lie together by unit."""
    distance = _distances(run)
    result = np.zeros(run.units)
    starts = np.flatnonzero(np.diff(place, prepend=-1))
    for first, last in zip(starts, np.append(starts[1:], len(place)), strict=True):
        rows, shares = row[first:last], weight[first:last]
        result[place[first]] = shares @ distance[np.ix_(rows, rows)] @ shares
    return result


def _distances(run: Run) -> NDArray[np.float64]:
    """1 - correlation of classes by their mean maxima over the last layer's units, float64 [K, K], within 0..1."""
    layer = run.layers[-1]
    table = run.rows("class_stats", "channel, class_index, mean_max", "layer = ?", [layer.name])
    indices = np.array([c.index for c in run.classes])
    means = np.zeros((len(indices), layer.channels))
    row = np.searchsorted(indices, table["class_index"].to_numpy())
    means[row, table["channel"].to_numpy()] = run.z(
        table["mean_max"].to_numpy(), layer.start + table["channel"].to_numpy().astype(np.int64)
    )
    means -= means.mean(0)  # what all classes share tells none apart
    means -= means.mean(1, keepdims=True)
    length = np.linalg.norm(means, axis=1, keepdims=True)
    means = np.divide(means, length, out=np.zeros_like(means), where=length > 0)
    distance: NDArray[np.float64] = np.clip(1 - means @ means.T, 0, 1)
    np.fill_diagonal(distance, 0)
    return distance


def _labels(
    run: Run, units: NDArray[np.int64], place: NDArray[Any], row: NDArray[Any], weight: NDArray[Any]
) -> list[str | None]:
    found: list[str | None] = []
    for unit in units:
        first, last = np.searchsorted(place, [unit, unit + 1])
        order = np.argsort(-weight[first:last], kind="stable")[:3]
        found.append("; ".join(run.classes[int(r)].label for r in row[first:last][order]) or None)
    return found
