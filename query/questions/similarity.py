"""Similar units, by the correlation of their per-image maxima, and similar images, by the units of a layer.

With more units or images than can be compared at once, a sketch in the store chooses candidates, and only these are
compared in full. For units it is the record of 4,096 images, for images 32 principal components of the layer.
docs/store.md states how many of the true answers are found.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from query.questions.columns import ranked_images, unit_columns
from query.record.codebook import Codes
from query.record.dense import Dense
from query.record.run_tables import Layer, Run
from query.record.unit import Unit
from store import codes, layout
from store.codes import CODES

Float = TypeVar("Float", np.float32, np.float64)

_ALL_UNITS, _ALL_IMAGES = 1 << 28, 1 << 24  # codes that are compared in full; with more, candidates are chosen first
_UNITS, _IMAGES = 200, 4000  # candidates, or ten times k if that is more
_IMAGES_SUMMED_BY_CODE = 1 << 14  # with fewer images, decoding many units together is quicker
_DECODED_AT_ONCE = 1 << 17  # values: they stay in a processor's cache
_IMAGES_AT_ONCE = 8192  # images of a layer decoded together: 64 MiB for 2,048 units


def similar_units(dense: Dense, unit: Unit, k: int, layers: Sequence[Layer] | None) -> pd.DataFrame:
    """Return the k units whose maxima correlate most with this unit's. Columns: see the declaration.

    Within the unit's own layer (`layers` is None) they are the stored `neighbors` if these are enough. Otherwise
    correlations are computed from the decoded record, and are within 0.001 of exact. Units that never vary have no
    correlation and are left out.
    """
    run = unit.run
    if layers is None or list(layers) == [unit.layer]:
        stored = run.lookup(run.only("neighbors")).rows(
            ["rank", "other_layer", "other_channel", "correlation"],
            {"layer": unit.layer.name, "channel": unit.channel},
        )
        if stored.num_rows >= k:
            stored = stored.slice(0, k)
            starts = [run.by_name[name].start for name in stored["other_layer"].to_pylist()]
            return _units_frame(run, stored["other_channel"].to_numpy() + starts, stored["correlation"].to_numpy())
    chosen = [unit.layer] if layers is None else layers
    if not run.statistics.max_sd[unit.index] > 0:
        return _units_frame(run, np.zeros(0, np.int64), np.zeros(0))
    units = np.concatenate([np.arange(layer.start, layer.stop) for layer in chosen])
    units = units[units != unit.index]
    if len(units) * run.n > _ALL_UNITS:
        units = _likely(dense, unit, chosen, units, max(_UNITS, 10 * k))
    correlation = correlations(dense, unit, units)
    order = np.lexsort((units, -correlation))
    order = order[~np.isnan(correlation[order])][:k]
    return _units_frame(run, units[order], correlation[order])


def correlations(dense: Dense, unit: Unit, units: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return Pearson's correlation of a unit with other units (unit indices), float64; NaN if one never varies.

    Over accepted images, from decoded maxima. Decoding keeps an exactly known share r of a unit's variance. If the
    other unit is close to linear in this one, their covariance shrinks by the same r, so each unit's r is divided out.
    """
    run, own = unit.run, dense.book(unit.layer, "max")
    mean, sd = (moment[unit.channel] for moment in own.moments)
    code = dense.unit(unit.layer, unit.channel, "max")
    weights = np.where(run.images.accepted, own.means[unit.channel].astype(np.float64)[code] - mean, 0)
    result = np.full(len(units), np.nan)
    for layer in run.layers:
        rows = np.flatnonzero((units >= layer.start) & (units < layer.stop))
        if not len(rows):
            continue
        book, channels = dense.book(layer, "max"), units[rows] - layer.start
        spread = sd * book.moments[1][channels]
        exact = run.statistics.max_sd[units[rows]] * run.statistics.max_sd[unit.index]
        covariance = np.empty(len(rows))
        for part, block in dense.blocks(layer, "max", channels):
            covariance[part] = _weighted_sums(book.means, channels[part], block, weights) / run.n
        varies = (spread > 0) & (exact > 0)
        result[rows[varies]] = covariance[varies] * exact[varies] / spread[varies] ** 2
    clipped: NDArray[np.float64] = np.clip(result, -1, 1)
    return clipped


def _weighted_sums(
    means: NDArray[np.float32], channels: NDArray[np.int64], code: Codes, weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the weighted sum over images of the decoded values of some channels, whose codes are given: float64 [n].

    `code` is uint8 [n, images]. With more images than codes, weights are summed by code, and nothing is decoded.
    """
    if code.shape[1] > _IMAGES_SUMMED_BY_CODE:
        by_code = (np.bincount(of_unit, weights, minlength=CODES) for of_unit in code)
        return np.array([sums @ means[channel] for sums, channel in zip(by_code, channels, strict=True)])
    sums = np.empty(len(code))
    step = max(1, _DECODED_AT_ONCE // max(code.shape[1], 1))
    for first in range(0, len(code), step):
        rows = slice(first, first + step)
        sums[rows] = _decoded(means[channels[rows]].astype(np.float64), code[rows]) @ weights
    return sums


def _likely(
    dense: Dense, unit: Unit, layers: Sequence[Layer], units: NDArray[np.int64], count: int
) -> NDArray[np.int64]:
    """Return the `count` units that correlate most over the store's sample of images, in unit order."""
    run = unit.run
    sample = dense.dataset(run.array(layout.array(run.name, "sample")), "max", "uint8", run.units, None)
    own = dense.book(unit.layer, "max").standard[unit.channel][sample[unit.index]]
    correlation = np.full(run.units, -np.inf)
    for layer in layers:
        z = _decoded(dense.book(layer, "max").standard, sample[layer.columns])
        z -= z.mean(1, keepdims=True)
        length = np.linalg.norm(z, axis=1)
        none = np.full(layer.channels, -np.inf)
        correlation[layer.columns] = np.divide(z @ own, length, out=none, where=length > 0)
    return np.sort(units[np.argsort(-correlation[units], kind="stable")[:count]])


def similar_images(
    dense: Dense, layer: Layer, k: int, image_id: int | None, z: NDArray[np.float32], everything: bool = False
) -> pd.DataFrame:
    """Return the k images that are most similar to a layer's units. Columns: see the declaration.

    Similarity is the cosine of the two images' z = (value - mean) / sd over the layer's units, from decoded maxima.
    `z` float32 [C] is of the image asked about, and `image_id` its own id, which is left out. With `everything`, all
    images are compared, not only candidates.
    """
    run = dense.run
    ids = run.images.all
    ids = ids[ids != image_id]
    if everything or len(ids) * layer.channels <= _ALL_IMAGES:
        similarity = _cosine_of_all(dense, layer, z)[ids]
    else:
        ids = _near(dense, layer, z, ids, max(_IMAGES, 10 * k))
        similarity = _cosine_of(dense, layer, z, ids)
    order = np.lexsort((ids, -similarity))[:k]
    return ranked_images(run, ids[order], similarity=similarity[order])


def standing(dense: Dense, layer: Layer, values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return z over a layer's units of a picture that was never scanned: float32 [C]; 0 if a unit never varies."""
    mean, sd = dense.book(layer, "max").moments
    z = np.divide(values - mean, sd, out=np.zeros(layer.channels), where=sd > 0)
    return z.astype(np.float32)


def standing_of(dense: Dense, layer: Layer, image_id: int) -> NDArray[np.float32]:
    """Return z over a layer's units of a stored image, from its codes: float32 [C]."""
    code = dense.image(image_id, "max")[layer.columns]
    z: NDArray[np.float32] = dense.book(layer, "max").standard[np.arange(layer.channels), code]
    return z


def _near(dense: Dense, layer: Layer, z: NDArray[np.float32], ids: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Return the `count` images with the largest cosine to z, by principal components and full lengths; rising ids."""
    path = dense.run.array(layout.array(dense.run.name, "components"))
    directions = dense.dataset(path, f"{layer.name}/directions", "float32", layer.channels, None)[()]
    deviations = dense.dataset(path, f"{layer.name}/deviations", "float32", directions.shape[1])[()]
    coordinates, length = dense.coordinates(layer)
    asked = (z @ directions) * deviations * (6 / 127)
    score = np.empty(len(coordinates), np.float32)
    for first in range(0, len(coordinates), layout.BLOCK):
        rows = slice(first, first + layout.BLOCK)
        score[rows] = coordinates[rows].astype(np.float32) @ asked.astype(np.float32)
    score = np.divide(score, length, out=np.full(len(score), -np.inf, np.float32), where=length > 0)[ids]
    if count < len(ids):
        ids = ids[np.argpartition(-score, count)[:count]]
    return np.sort(ids)


def _cosine_of(dense: Dense, layer: Layer, z: NDArray[np.float32], ids: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the cosine to z of some images: float64 [len(ids)]."""
    return _cosines(np.stack([standing_of(dense, layer, int(image_id)) for image_id in ids]), z)


def _cosine_of_all(dense: Dense, layer: Layer, z: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the cosine to z of all images of the dataset, rejected ones too: float64 [images].

    Images are decoded in blocks, so that memory does not grow with their number.
    """
    images = len(dense.run.images.accepted)
    pieces = [np.zeros(0)]
    for first in range(0, images, _IMAGES_AT_ONCE):
        block = dense.layer_codes(layer, slice(first, min(first + _IMAGES_AT_ONCE, images)))
        pieces.append(_cosines(_decoded(dense.book(layer, "max").standard, block).T, z))
    return np.concatenate(pieces)


def _cosines(rows: NDArray[np.float32], z: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the cosine of each row [n, C] to z [C], 0 if one of them is zero: float64 [n]."""
    exact, asked = rows.astype(np.float64), z.astype(np.float64)
    length = np.linalg.norm(exact, axis=1) * np.linalg.norm(asked)
    cosines: NDArray[np.float64] = np.divide(exact @ asked, length, out=np.zeros(len(rows)), where=length > 0)
    return cosines


def _decoded(table: NDArray[Float], code: Codes) -> NDArray[Float]:
    """Look codes [C, n] up in a table [C, 256]: [C, n]."""
    flat: NDArray[Float] = table.ravel()[code + np.arange(len(code), dtype=np.int32)[:, None] * codes.CODES]
    return flat


def _units_frame(run: Run, units: NDArray[np.int64], correlation: NDArray[np.float64]) -> pd.DataFrame:
    return pd.DataFrame(
        {
            **unit_columns(run, units.astype(np.int64)),
            "rank": np.arange(1, len(units) + 1),
            "correlation": correlation.astype(np.float64),
            "n": run.n,
        }
    )
