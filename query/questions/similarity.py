"""What is like what: units by correlation of their per-image maxima, images by their units.

Where comparing with everything would take long, a sketch in the store chooses candidates (units: the record of 4,096
images; images: 32 principal components of the layer) and only these are compared in full. docs/store.md states recall.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from query.questions.columns import image_columns, unit_columns
from query.record.dense import Dense
from query.record.run_tables import Layer, Run
from query.resolve import Unit
from store import codes, layout
from store.codes import CODES

_ALL_UNITS, _ALL_IMAGES = 1 << 28, 1 << 24  # codes that are compared in full without choosing candidates first
_UNITS, _IMAGES = 200, 4000  # candidates, or ten times what is asked for
_IMAGES_AT_ONCE = 8192  # columns of a layer decoded together: 64 MiB for 2,048 units


def similar_units(dense: Dense, unit: Unit, k: int, layers: Sequence[Layer] | None) -> pd.DataFrame:
    """model, layer, channel, rank, correlation, n: the k units whose maxima rise and fall most with this unit's.

    Within its own layer the stored `neighbors` as far as they reach; beyond them, and in other layers, Pearson over
    the decoded record (within 0.001 of exact). Units that never vary have no correlation and do not appear.
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
    if not run.statistics.max_sd[unit.place] > 0:
        return _units_frame(run, np.zeros(0, np.int64), np.zeros(0))
    places = np.concatenate([np.arange(layer.start, layer.stop) for layer in chosen])
    places = places[places != unit.place]
    if len(places) * run.n > _ALL_UNITS:
        places = _likely(dense, unit, chosen, places, max(_UNITS, 10 * k))
    correlation = correlations(dense, unit, places)
    order = np.lexsort((places, -correlation))
    order = order[~np.isnan(correlation[order])][:k]
    return _units_frame(run, places[order], correlation[order])


def correlations(dense: Dense, unit: Unit, places: NDArray[np.int64]) -> NDArray[np.float64]:
    """Pearson of one unit with the units at these places over accepted images, float64; NaN where one never varies.

    From decoded maxima. A value's code keeps a share r of its variance, known exactly; covariance with a value that is
    near enough a line in it shrinks by the same r, so each unit's r is divided out.
    """
    run, own = unit.run, dense.book(unit.layer, "max")
    mean, sd = (moment[unit.channel] for moment in own.moments)
    code = dense.unit(unit.layer, unit.channel, "max")
    weights = np.where(run.images.accepted, own.means[unit.channel].astype(np.float64)[code] - mean, 0)
    result = np.full(len(places), np.nan)
    for layer in run.layers:
        here = np.flatnonzero((places >= layer.start) & (places < layer.stop))
        if not len(here):
            continue
        book, channels = dense.book(layer, "max"), places[here] - layer.start
        spread = sd * book.moments[1][channels]
        exact = run.statistics.max_sd[places[here]] * run.statistics.max_sd[unit.place]
        covariance = np.empty(len(here))
        for i, found in dense.rows(layer, "max", channels):  # sum of weights by code: nothing need be decoded
            covariance[i] = np.bincount(found, weights, minlength=CODES) @ book.means[channels[i]] / run.n
        varies = (spread > 0) & (exact > 0)
        result[here[varies]] = covariance[varies] * exact[varies] / spread[varies] ** 2
    clipped: NDArray[np.float64] = np.clip(result, -1, 1)
    return clipped


def _likely(
    dense: Dense, unit: Unit, layers: Sequence[Layer], places: NDArray[np.int64], count: int
) -> NDArray[np.int64]:
    """The places that correlate most over the store's sample of images."""
    run = unit.run
    sample = dense.dataset(run.array(layout.array(run.name, "sample")), "max")
    own = dense.book(unit.layer, "max").standard[unit.channel][sample[unit.place]]
    found = np.full(run.units, -np.inf)
    for layer in layers:
        z = _decoded(dense.book(layer, "max").standard, sample[layer.columns])
        z -= z.mean(1, keepdims=True)
        length = np.linalg.norm(z, axis=1)
        found[layer.columns] = np.divide(z @ own, length, out=np.full(layer.channels, -np.inf), where=length > 0)
    return np.sort(places[np.argsort(-found[places], kind="stable")[:count]])


def similar_images(
    dense: Dense, layer: Layer, k: int, image_id: int | None, z: NDArray[np.float32], everything: bool = False
) -> pd.DataFrame:
    """rank, image_id, path, label, class_index, similarity, n: images on which a layer's units stand most alike.

    Similarity is the cosine of the two images' z = (value - mean) / sd over the layer's units, from decoded maxima.
    z float32 [C]: the image asked about; `image_id`: its own id, left out. `everything`: compare with all images, not
    with the likeliest alone.
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
    ids = ids[order]
    return pd.DataFrame(
        {
            "rank": np.arange(1, len(ids) + 1),
            **image_columns(run, ids),
            "similarity": similarity[order],
            "n": run.n,
        }
    )


def standing(dense: Dense, layer: Layer, values: NDArray[np.float32]) -> NDArray[np.float32]:
    """z of a picture never scanned over a layer's units: float32 [C]; 0 where a unit never varies."""
    mean, sd = dense.book(layer, "max").moments
    z = np.divide(values - mean, sd, out=np.zeros(layer.channels), where=sd > 0)
    return z.astype(np.float32)


def standing_of(dense: Dense, layer: Layer, image_id: int) -> NDArray[np.float32]:
    """The same of a stored image, from its codes."""
    found = dense.image(image_id, "max")[layer.columns]
    z: NDArray[np.float32] = dense.book(layer, "max").standard[np.arange(layer.channels), found]
    return z


def _near(dense: Dense, layer: Layer, z: NDArray[np.float32], ids: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """The images whose principal components point most as the picture's do, their full lengths known; rising."""
    place = dense.run.array(layout.array(dense.run.name, "components"))
    directions, deviations = (dense.dataset(place, f"{layer.name}/{key}")[()] for key in ("directions", "deviations"))
    near, length = dense.coordinates(layer)
    asked = (z @ directions) * deviations * (6 / 127)
    score = np.empty(len(near), np.float32)
    for first in range(0, len(near), layout.BLOCK):
        rows = slice(first, first + layout.BLOCK)
        score[rows] = near[rows].astype(np.float32) @ asked.astype(np.float32)
    score = np.divide(score, length, out=np.full(len(near), -np.inf, np.float32), where=length > 0)[ids]
    if count < len(ids):
        ids = ids[np.argpartition(-score, count)[:count]]
    return np.sort(ids)


def _cosine_of(dense: Dense, layer: Layer, z: NDArray[np.float32], ids: NDArray[np.int64]) -> NDArray[np.float64]:
    found = np.stack([standing_of(dense, layer, int(image_id)) for image_id in ids])
    return _cosines(found, z)


def _cosine_of_all(dense: Dense, layer: Layer, z: NDArray[np.float32]) -> NDArray[np.float64]:
    """Over all images of the dataset, rejected ones too: memory does not grow with their number."""
    images = len(dense.run.images.accepted)
    pieces = [np.zeros(0)]
    for first in range(0, images, _IMAGES_AT_ONCE):
        found = dense.layer_codes(layer, slice(first, min(first + _IMAGES_AT_ONCE, images)))
        pieces.append(_cosines(_decoded(dense.book(layer, "max").standard, found).T, z))
    return np.concatenate(pieces)


def _cosines(found: NDArray[np.float32], z: NDArray[np.float32]) -> NDArray[np.float64]:
    exact, asked = found.astype(np.float64), z.astype(np.float64)
    length = np.linalg.norm(exact, axis=1) * np.linalg.norm(asked)
    cosines: NDArray[np.float64] = np.divide(exact @ asked, length, out=np.zeros(len(found)), where=length > 0)
    return cosines


def _decoded(table: NDArray[np.float32], found: NDArray[np.uint8]) -> NDArray[np.float32]:
    """What codes [C, n] stand for in a table [C, 256]: float32 [C, n]."""
    flat: NDArray[np.float32] = table.ravel()[found + np.arange(len(found), dtype=np.int32)[:, None] * codes.CODES]
    return flat


def _units_frame(run: Run, places: NDArray[np.int64], correlation: NDArray[np.float64]) -> pd.DataFrame:
    return pd.DataFrame(
        {
            **unit_columns(run, places.astype(np.int64)),
            "rank": np.arange(1, len(places) + 1),
            "correlation": correlation.astype(np.float64),
            "n": run.n,
        }
    )
