"""What is like what: units by correlation of their per-image maxima, images by their units."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from .dense import Dense
from .frames import image_columns, text
from .names import Unit
from .run import Layer, Run

_IMAGES_AT_ONCE = 8192  # columns of a layer decoded together: 64 MiB for 2,048 units


def similar_units(dense: Dense, unit: Unit, k: int, layer: Layer | None) -> pd.DataFrame:
    """model, layer, channel, rank, correlation, n: the k units whose maxima rise and fall most with this unit's.

    Within its own layer the stored `neighbors` as far as they reach; beyond them, and in another layer, Pearson over
    the decoded record (within 0.0004 of exact at scale). Units that never vary have no correlation and do not appear.
    """
    run = unit.run
    if layer is None or layer == unit.layer:
        stored = run.rows(
            "neighbors", "other_layer, other_channel, correlation", "layer = ? AND channel = ?",
            [unit.layer.name, unit.channel], f"ORDER BY rank LIMIT {k}",
        )  # fmt: skip
        if stored.num_rows == k:
            return _units_frame(
                run,
                stored["other_layer"].to_pylist(),
                stored["other_channel"].to_numpy(),
                stored["correlation"].to_numpy(),
            )
    other = layer or unit.layer
    correlation = _correlations(dense, unit, other)
    if other == unit.layer:
        correlation[unit.channel] = np.nan
    channels = np.flatnonzero(~np.isnan(correlation))
    channels = channels[np.lexsort((channels, -correlation[channels]))[:k]]
    return _units_frame(run, [other.name] * len(channels), channels, correlation[channels])


def similar_images(
    dense: Dense, layer: Layer, k: int, image_id: int | None, values: NDArray[np.float32]
) -> pd.DataFrame:
    """rank, image_id, path, label, class_index, similarity, n: images on which a layer's units stand most alike.

    Similarity is the cosine of the two images' z = (value - max_mean) / max_sd over the layer's units, from decoded
    maxima. `values` float32 [C]: the image asked about; `image_id`: its own id, left out of the answer.
    """
    run = dense.run
    mean, sd = run.statistics.max_mean[layer.columns, None], run.statistics.max_sd[layer.columns, None]
    scale = np.divide(1, sd, out=np.zeros_like(sd), where=sd > 0)
    mean = np.where(sd > 0, mean, 0)
    asked = ((values[:, None] - mean) * scale)[:, 0]
    similarity = np.empty(len(run.images.accepted))
    for first in range(0, len(similarity), _IMAGES_AT_ONCE):
        images = slice(first, min(first + _IMAGES_AT_ONCE, len(similarity)))
        z = (dense.layer_maxima(layer, images) - mean) * scale
        length = np.linalg.norm(z, axis=0) * np.linalg.norm(asked)
        similarity[images] = np.divide(asked @ z, length, out=np.zeros(z.shape[1]), where=length > 0)
    ids = np.flatnonzero(run.images.accepted)
    ids = ids[ids != image_id]
    ids = ids[np.lexsort((ids, -similarity[ids]))[:k]]
    return pd.DataFrame(
        {
            "rank": np.arange(1, len(ids) + 1),
            **image_columns(run, ids),
            "similarity": similarity[ids],
            "n": run.n,
        }
    )


def _correlations(dense: Dense, unit: Unit, layer: Layer) -> NDArray[np.float64]:
    """Pearson of one unit with every unit of a layer over accepted images, float64 [C]; NaN where one never varies.

    Sums run about the recorded means, block by block: memory does not grow with the number of images.
    """
    run = unit.run
    accepted = run.images.accepted
    code = dense.unit(unit.layer, unit.channel)["max"]
    own = dense.book(unit.layer, "max").means[unit.channel]
    own_mean = run.statistics.max_mean[unit.place]
    mean = run.statistics.max_mean[layer.columns, None]
    sums = np.zeros((3, layer.channels))  # of d, d * d and d * own
    own_sums = np.zeros(2)
    for first in range(0, len(accepted), _IMAGES_AT_ONCE):
        images = slice(first, min(first + _IMAGES_AT_ONCE, len(accepted)))
        kept = accepted[images]
        d = (dense.layer_maxima(layer, images) - mean)[:, kept]
        e = (own[code[images]] - own_mean)[kept]
        sums += np.stack([d.sum(1), (d * d).sum(1), d @ e])
        own_sums += e.sum(), e @ e
    return _pearson(sums, own_sums, run.n)


def _pearson(sums: NDArray[np.float64], own_sums: NDArray[np.float64], n: int) -> NDArray[np.float64]:
    covariance = sums[2] - sums[0] * own_sums[0] / n
    spread = (sums[1] - sums[0] ** 2 / n) * (own_sums[1] - own_sums[0] ** 2 / n)
    varies = spread > 1e-20 * np.maximum(sums[1] * own_sums[1], np.finfo(float).tiny)
    result = np.full(len(spread), np.nan)
    np.divide(covariance, np.sqrt(np.maximum(spread, 0)), out=result, where=varies)
    return result


def _units_frame(
    run: Run, layers: list[str], channels: NDArray[np.int64], correlation: NDArray[np.float64]
) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "model": text([run.model] * len(layers)),
            "layer": text(layers),
            "channel": channels.astype(np.int64),
            "rank": np.arange(1, len(layers) + 1),
            "correlation": correlation.astype(np.float64),
            "n": run.n,
        }
    )
