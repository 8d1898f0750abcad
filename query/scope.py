"""The questions one can ask a store."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from query import resolve
from query.questions import (
    class_units,
    comparison,
    image_summary,
    image_units,
    macros,
    separating_units,
    similarity,
    unit_images,
    unit_kinds,
)
from query.questions.image_units import ImageRow
from query.questions.unit_record import UnitRecord, unit_record
from query.record import stored_pictures
from query.record.dense import Dense
from query.record.run_tables import Run
from query.resolve import ClassName, ImageName, Unit
from query.sql import catalog
from query.sql.database import Database, Limits, Result
from query.sql.worker import Isolated
from store.errors import UsageError

if TYPE_CHECKING:
    from PIL import Image

    from query.live import Probe


class Scope:
    """A store, read-only. Every answer has n, the number of images its shares are of.

    IMAGE: an image_id (int or all digits), a path in the dataset, or a picture file on disk, on which the model then
    runs. UNIT: LAYER:CHANNEL or MODEL/LAYER:CHANNEL. Where a store holds several runs, model= and dataset= choose; an
    ambiguous question is a UsageError that lists the choices.
    """

    def __init__(self, path: str | PathLike[str], *, model_code: bool = False, limits: Limits | None = None) -> None:
        self.path = Path(path)
        self._model_code = model_code
        self._catalog = catalog.read(self.path)
        limits = limits or Limits()
        self._database = Database(self._catalog, limits)
        self._isolated = Isolated(self.path, limits, model_code) if limits.isolated else None
        self._dense = {r.name: Dense(Run(r, self._catalog, self._database)) for r in self._catalog.runs}
        macros.register(self._database.connection, self, self._database.expired)
        self._database.lock()
        self._probes: dict[str, Probe] = {}

    def sql(self, query: str, parameters: Sequence[Any] | None = None) -> Result:
        """Runs one SELECT over the views and macros (docs: the views' columns); `?` takes `parameters`."""
        if self._isolated is not None:
            return Result(self._isolated.table(query, parameters))
        return self._database.sql(query, parameters)

    def top_units(
        self,
        image: ImageName,
        k: int = 20,
        layer: str | Sequence[str] | None = None,
        by: str = "tail",
        model: str | None = None,
        dataset: str | None = None,
    ) -> pd.DataFrame:
        """The units an image excites most: model, layer, channel, value, mean, tail_p, z, rank, y, x, n.

        by "tail": (tail_p rising, z falling, layer_index, channel); "max": z falling; "mean": z of the spatial mean
        falling, and the column z is that. `layer`: a glob or several. Values with tail_p <= 0.01, and those of a unit's
        first 20 images, are exact; the others are decoded from tail codes, with y and x unknown. The mean is decoded.
        On a picture never scanned all is exact, and tail_p = (1 + images at or above the value's code) / (n + 1).
        """
        _one_of(by, ("tail", "max", "mean"))
        _positive(k)
        run, found = resolve.find_image(self._runs(model, dataset), image)
        units = resolve.units_of_layers(run, layer)
        row = self._row_of(run, found, units, enough=k if by == "tail" else None)
        return image_units.ranked(self._dense[run.name], row, k, by)

    def top_images(
        self,
        unit: str,
        k: int = 20,
        label: ClassName | None = None,
        by: str = "max",
        lowest: bool = False,
        model: str | None = None,
        dataset: str | None = None,
    ) -> pd.DataFrame:
        """The images that excite a unit most: rank, image_id, path, label, class_index, value, mean, tail_p, y, x, n.

        `label`: only images of this class (index, synset or label). by "max": the stored exact order as far as it
        reaches, then decoded; "mean": by the spatial mean. `lowest`: the stored lowest images of a signed layer.
        """
        _one_of(by, ("max", "mean"))
        _positive(k)
        found = self._unit(unit, model, dataset)
        of_class = None if label is None else resolve.find_class(found.run, label)
        if lowest:
            if by != "max":
                raise UsageError("lowest images are ordered by their minimum: leave `by` out")
            return unit_images.lowest_images(found, k, of_class)
        return unit_images.top_images(self._dense_of(found), found, k, of_class, by)

    def activations(self, unit: str, model: str | None = None, dataset: str | None = None) -> pd.DataFrame:
        """One unit over all accepted images: image_id, path, label, class_index, value, mean, tail_p, exact, y, x, n.

        `exact`: value is what was measured; else the mean of the values with its code. By image_id.
        """
        found = self._unit(unit, model, dataset)
        return unit_images.activations(self._dense_of(found), found)

    def activations_of(
        self,
        image: ImageName,
        layer: str | Sequence[str] | None = None,
        model: str | None = None,
        dataset: str | None = None,
    ) -> pd.DataFrame:
        """One image over all units, in their order: model, layer, channel, value, mean, tail_p, z, y, x, n."""
        run, row = self._row(image, layer, model, dataset)
        return image_units.as_frame(run, row, run.z(row.value, row.units))

    def similar_units(
        self,
        unit: str,
        k: int = 10,
        layer: str | Sequence[str] | None = None,
        model: str | None = None,
        dataset: str | None = None,
    ) -> pd.DataFrame:
        """Units whose per-image maxima correlate most with this unit's: model, layer, channel, rank, correlation, n.

        Within the unit's own layer, or the layers of the globs `layer` ("*": all). Of more units than can be compared
        at once, those are that correlate most over 4,096 images.
        """
        _positive(k)
        found = self._unit(unit, model, dataset)
        within = None if layer is None else resolve.find_layers(found.run, layer)
        return similarity.similar_units(self._dense_of(found), found, k, within)

    def similar_images(
        self, image: ImageName, layer: str, k: int = 10, model: str | None = None, dataset: str | None = None
    ) -> pd.DataFrame:
        """Images a layer's units see alike: rank, image_id, path, label, class_index, similarity (cosine of z), n."""
        _positive(k)
        run, found = resolve.find_image(self._runs(model, dataset), image)
        dense, within = self._dense[run.name], resolve.find_layer(run, layer)
        if isinstance(found, Path):
            values = self._probe(run).row(found, np.arange(within.start, within.stop)).value
            z = similarity.standing(dense, within, values)
            return similarity.similar_images(dense, within, k, None, z)
        z = similarity.standing_of(dense, within, found)
        return similarity.similar_images(dense, within, k, found, z)

    def both(
        self,
        a: str,
        b: str,
        without: bool = False,
        k: int = 20,
        model: str | None = None,
        dataset: str | None = None,
    ) -> pd.DataFrame:
        """Images on which both units are high, or, with `without`, a is high and b is not.

        rank, image_id, path, label, class_index, value_a, tail_p_a, value_b, tail_p_b, n; by the larger tail_p, then
        their sum. `without`: b is zero or below its median image; by tail_p of a, then that of b falling.
        """
        _positive(k)
        one, other = self._unit(a, model, dataset), self._unit(b, model, dataset)
        return unit_images.both(self._dense_of(one), one, self._dense_of(other), other, k, without)

    def units_for_class(
        self,
        label: ClassName,
        k: int | None = 20,
        layer: str | Sequence[str] | None = None,
        model: str | None = None,
        dataset: str | None = None,
    ) -> pd.DataFrame:
        """Units that tell a class (index, synset or label) from the rest, by auc falling, then z of the class mean.

        model, layer, channel, rank, auc, mean_max, z, selectivity, top_class, class_index, label, n. k=None: all.
        """
        run = resolve.the_one(self._runs(model, dataset), f"class {label}")
        return class_units.units_for_class(run, resolve.find_class(run, label), _all_or(k), layer)

    def class_selectivity(
        self,
        k: int | None = None,
        layer: str | Sequence[str] | None = None,
        model: str | None = None,
        dataset: str | None = None,
    ) -> pd.DataFrame:
        """Units by class selectivity falling: model, layer, channel, rank, selectivity, top_class, label, n.

        selectivity = (best class mean - mean of the others) / their sum, on per-image maxima. k=None: all units.
        """
        run = resolve.the_one(self._runs(model, dataset), "class_selectivity")
        return unit_kinds.class_selectivity(run, resolve.units_of_layers(run, layer), _all_or(k))

    def separating_units(
        self,
        images_a: ClassName | Sequence[ImageName],
        images_b: ClassName | Sequence[ImageName],
        k: int | None = 20,
        layer: str | Sequence[str] | None = None,
        model: str | None = None,
        dataset: str | None = None,
    ) -> pd.DataFrame:
        """Units that best tell two sets of images apart, by |auc - 0.5| falling.

        Each set is a class (index, synset or label) or a list of images. model, layer, channel, rank, auc (near 1: high
        on a; near 0: high on b), mean_a, mean_b, z (their difference in deviations), n_a, n_b, n. k=None: all units.
        """
        run = resolve.the_one(self._runs(model, dataset), "separating_units")
        a, b = (resolve.find_images(run, images) for images in (images_a, images_b))
        units = resolve.units_of_layers(run, layer)
        return separating_units.separating_units(self._dense[run.name], a, b, units, _all_or(k))

    def compare(
        self,
        model_a: str,
        model_b: str,
        k: int | None = 20,
        layer: str | Sequence[str] | None = None,
        dataset: str | None = None,
    ) -> pd.DataFrame:
        """Which units differ between two models, or two checkpoints, on the same images; the most changed first.

        model, layer, channel, other_model, other_layer, other_channel, rank, change = 1 - correlation, correlation, n.
        With the same layers each unit beside itself, otherwise beside the unit of model_b that goes with it best.
        """
        a, b = (resolve.the_one(self._runs(m, dataset), f"model {m}") for m in (model_a, model_b))
        return comparison.compare(self._dense[a.name], self._dense[b.name], _all_or(k), layer)

    def polysemantic_units(
        self,
        k: int | None = 20,
        layer: str | Sequence[str] | None = None,
        model: str | None = None,
        dataset: str | None = None,
    ) -> pd.DataFrame:
        """Units whose highest images are of several unlike classes.

        model, layer, channel, rank, spread, share, classes, labels, n. share: of the stored highest images, those of
        classes the unit fires for; spread: share x the mean distance of two of their classes, falling. k=None: all.
        """
        run = resolve.the_one(self._runs(model, dataset), "polysemantic_units")
        return unit_kinds.polysemantic_units(run, resolve.units_of_layers(run, layer), _all_or(k))

    def unit_states(
        self, layer: str | Sequence[str] | None = None, model: str | None = None, dataset: str | None = None
    ) -> pd.DataFrame:
        """Units that are dead, always on or clipped: model, layer, channel, state, fraction_active, saturated, maximum,
        n."""
        run = resolve.the_one(self._runs(model, dataset), "unit_states")
        return unit_kinds.unit_states(run, resolve.units_of_layers(run, layer))

    def image_summary(self, image: ImageName, model: str | None = None, dataset: str | None = None) -> pd.DataFrame:
        """An image layer by layer: model, layer, units, active, rare, expected, channel, value, tail_p, z, y, x, n.

        active: units above zero; rare: units with tail_p <= 0.01, `expected` the usual number; channel: the first unit.
        """
        run, row = self._row(image, None, model, dataset)
        return image_summary.image_summary(run, row)

    def visualization(
        self,
        unit: str,
        kind: str = "channel",
        direction: str = "positive",
        repeat: int = 0,
        model: str | None = None,
        dataset: str | None = None,
    ) -> stored_pictures.Pixels:
        """A unit's feature visualization, uint8 [H, W, 3]; how far to trust it is in the view `visualizations`."""
        return stored_pictures.visualization(self._unit(unit, model, dataset), kind, direction, repeat)

    def unit(self, unit: str, model: str | None = None, dataset: str | None = None) -> UnitRecord:
        """Everything known about one unit."""
        found = self._unit(unit, model, dataset)
        return unit_record(self._dense_of(found), found)

    def contact_sheet(self, unit: str, model: str | None = None, dataset: str | None = None) -> Image.Image:
        """One picture of everything known about a unit."""
        from query.presentation.contact_sheet import contact_sheet

        found = self._unit(unit, model, dataset)
        return contact_sheet(self._dense_of(found), found)

    def close(self) -> None:
        for dense in self._dense.values():
            dense.close()
        if self._isolated is not None:
            self._isolated.close()
        self._database.close()

    def __enter__(self) -> Scope:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def most_images(self) -> int:
        """Accepted images of the largest dataset."""
        return max((run.n for run in self._all_runs), default=0)

    def most_units(self) -> int:
        """Units of the largest run."""
        return max((run.units for run in self._all_runs), default=0)

    @functools.cached_property
    def _all_runs(self) -> list[Run]:
        """Runs whose layers are known; one that has not folded yet answers nothing."""
        return [dense.run for dense in self._dense.values() if dense.run.has("layers")]

    def _runs(self, model: str | None, dataset: str | None) -> list[Run]:
        return resolve.choose_runs(self._all_runs, model, dataset)

    def _unit(self, text: str, model: str | None, dataset: str | None) -> Unit:
        return resolve.find_unit(self._runs(model, dataset), text)

    def _dense_of(self, unit: Unit) -> Dense:
        return self._dense[unit.run.name]

    def _row(
        self, image: ImageName, layer: str | Sequence[str] | None, model: str | None, dataset: str | None
    ) -> tuple[Run, ImageRow]:
        run, found = resolve.find_image(self._runs(model, dataset), image)
        return run, self._row_of(run, found, resolve.units_of_layers(run, layer))

    def _row_of(self, run: Run, image: int | Path, units: NDArray[np.int64], enough: int | None = None) -> ImageRow:
        if isinstance(image, Path):
            return self._probe(run).row(image, units)
        return image_units.stored_row(self._dense[run.name], image, units, enough)

    def _probe(self, run: Run) -> Probe:
        from query.live import Probe

        if run.name not in self._probes:
            self._probes[run.name] = Probe(self._dense[run.name], self._model_code)
        return self._probes[run.name]


def _one_of(by: str, allowed: Sequence[str]) -> None:
    if by not in allowed:
        raise UsageError(f"by={by!r}: expected one of {', '.join(allowed)}")


def _all_or(k: int | None) -> int | None:
    if k is not None:
        _positive(k)
    return k


def _positive(k: int) -> None:
    if k < 1:
        raise UsageError(f"k={k}: ask for 1 or more")
