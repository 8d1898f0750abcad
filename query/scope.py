"""The Python API: a store, and the questions one can ask it (query/questions/declarations.py declares them)."""

from __future__ import annotations

import functools
import threading
import weakref
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from query import arguments, resolve
from query.questions import (
    class_selectivity,
    class_units,
    comparison,
    connections,
    distribution,
    image_summary,
    image_units,
    macros,
    polysemantic,
    separating_units,
    similarity,
    top_images,
    unit_column,
    unit_pairs,
    unit_states,
)
from query.questions.image_units import ImageRow
from query.questions.unit_record import UnitRecord, unit_record
from query.record import stored_pictures
from query.record.dense import Dense
from query.record.run_tables import Run
from query.record.unit import Unit
from query.resolve import ClassName, ImageName
from query.sql import catalog
from query.sql.database import Database, Limits, Result
from query.sql.worker import SqlWorker
from store.errors import UsageError

if TYPE_CHECKING:
    from PIL import Image

    from query.explanation.explained import Explained
    from query.live import Probe


class Scope:
    """A store, open for reading.

    An image is an image_id (int or all digits), a path in the dataset, or a picture file on disk, on which the model
    then runs. A unit is LAYER:CHANNEL or MODEL/LAYER:CHANNEL. `layer` is a glob or several, and k=None asks for all
    units. If a store holds several runs, `model` and `dataset` choose one; an ambiguous question raises UsageError,
    which lists the choices. Every answer has the column n, the number of images that its shares are of.
    """

    def __init__(self, path: str | PathLike[str], *, model_code: bool = False, limits: Limits | None = None) -> None:
        try:
            self.path = Path(path)
        except TypeError:
            raise UsageError(f"a store is a folder: {arguments.shown(path)} is no path") from None
        self._model_code = model_code
        self.catalog = catalog.read(self.path)
        limits = limits or Limits()
        self._database = Database(self.catalog, limits)
        self._worker = SqlWorker(self.path, limits, model_code) if limits.isolated else None
        self._dense = {r.name: Dense(Run(r, self.catalog, self._database)) for r in self.catalog.runs}
        # The connection keeps what it is given in a circle that Python cannot see: nothing may lead back to it.
        expired = weakref.WeakMethod(self._database.expired)
        macros.register(self._database.connection, self, lambda: bool((asked := expired()) and asked()))
        self._database.lock()
        self._probes: dict[str, Probe] = {}
        self._opening = threading.Lock()

    def sql(self, query: str, parameters: Sequence[Any] | None = None) -> Result:
        """Run one SELECT over the views and macros, which docs/sql.md lists. Each `?` takes one of `parameters`."""
        if isinstance(query, str):
            self.catalog.intact.require(self.catalog.named_in(query))
        if self._worker is not None:
            return Result(self._worker.table(query, parameters))
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
        """Return the units that an image excites most: model, layer, channel, value, mean, tail_p, z, rank, y, x, n.

        by "tail": tail_p rising, then z falling, then unit order; "max": z falling; "mean": z of the spatial mean
        falling, which is then the column z. Values with tail_p <= 0.01, and those of a unit's first 20 images, are
        exact; the others are decoded from tail codes, and their y and x are not known. The mean is always decoded. On a
        picture that was never scanned everything is exact but tail_p = (1 + images that reach the value's code) /
        (n + 1).
        """
        arguments.one_of(by, ("tail", "max", "mean"))
        k = arguments.count(k)
        run, source = resolve.find_image(self._runs(model, dataset), image)
        units = resolve.units_of_layers(run, layer)
        row = self._row_of(run, source, units, enough=k if by == "tail" else None)
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
        """Return the images that excite a unit most.

        Columns: rank, image_id, path, label, class_index, value, mean, tail_p, y, x, n. `label` keeps only images of
        this class (index, synset or label). by "max": in the stored exact order as far as it reaches, then by decoded
        values; "mean": by the spatial mean. `lowest` returns the stored lowest images of a signed layer.
        """
        arguments.one_of(by, ("max", "mean"))
        k = arguments.count(k)
        asked = self._unit(unit, model, dataset)
        of_class = None if label is None else resolve.find_class(asked.run, label)
        if lowest:
            if by != "max":
                raise UsageError("lowest images are ordered by their minimum: leave `by` out")
            return top_images.lowest_images(asked, k, of_class)
        return top_images.top_images(self._dense_of(asked), asked, k, of_class, by)

    def activations(self, unit: str, model: str | None = None, dataset: str | None = None) -> pd.DataFrame:
        """Return one unit over all accepted images, by image_id.

        Columns: image_id, path, label, class_index, value, mean, tail_p, exact, y, x, n. `exact` says whether the value
        is what was measured; if not, it is the mean of the values with its code.
        """
        asked = self._unit(unit, model, dataset)
        return unit_column.activations(self._dense_of(asked), asked)

    def distribution(self, unit: str, model: str | None = None, dataset: str | None = None) -> pd.DataFrame:
        """Return a histogram of a unit's maxima over images: bin, low, high, images, n.

        48 equal bins; images are counted by the mean value of their code. A unit that never varies has one bin.
        """
        asked = self._unit(unit, model, dataset)
        return distribution.distribution(self._dense_of(asked), asked)

    def images_between(
        self, unit: str, low: float, high: float, k: int = 20, model: str | None = None, dataset: str | None = None
    ) -> pd.DataFrame:
        """Return the images on which a unit's value lies from `low` to `high`, by value falling.

        Columns as of top_images. Values that are not kept exactly are those of their codes.
        """
        k, low, high = arguments.count(k), arguments.number("low", low), arguments.number("high", high)
        asked = self._unit(unit, model, dataset)
        return distribution.images_between(self._dense_of(asked), asked, low, high, k)

    def quantile_images(
        self, unit: str, k: int = 8, model: str | None = None, dataset: str | None = None
    ) -> pd.DataFrame:
        """Return k images around each of the 99, 90, 50 and 10 % quantiles of a unit's values.

        A run whose config has `[examples] quantiles` has these instead. Images are chosen by their codes.

        Columns: quantile, then those of top_images. rank counts within a quantile.
        """
        k = arguments.count(k)
        asked = self._unit(unit, model, dataset)
        return distribution.quantile_images(self._dense_of(asked), asked, k)

    def activations_of(
        self,
        image: ImageName,
        layer: str | Sequence[str] | None = None,
        model: str | None = None,
        dataset: str | None = None,
    ) -> pd.DataFrame:
        """Return one image over all units, in unit order: model, layer, channel, value, mean, tail_p, z, y, x, n."""
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
        """Return the units whose per-image maxima correlate most with this unit's.

        Columns: model, layer, channel, rank, correlation, n. Searched is the unit's own layer, or the layers that
        `layer` matches ("*": all). With more units than can be compared at once, candidates are chosen on a sample of
        4,096 images.
        """
        k = arguments.count(k)
        asked = self._unit(unit, model, dataset)
        within = None if layer is None else resolve.find_layers(asked.run, layer)
        return similarity.similar_units(self._dense_of(asked), asked, k, within)

    def inputs(self, unit: str, k: int = 20, model: str | None = None, dataset: str | None = None) -> pd.DataFrame:
        """Return the units that feed a unit most strongly, through none of the run's other layers.

        Columns: model, layer, channel, rank, strength, weight, path, n. `strength` is the length of the weights that
        lead from the other unit to this one, times the standard deviation of the other's values over positions, and
        negative if the weights' sum, `weight`, is. `path` says what the weights lead through. As many as
        `[connections] count` in the run's config are kept.
        """
        return connections.inputs(self._unit(unit, model, dataset), arguments.count(k))

    def outputs(self, unit: str, k: int = 20, model: str | None = None, dataset: str | None = None) -> pd.DataFrame:
        """Return the units that a unit feeds most strongly, of those that have it among their inputs kept.

        Columns as of inputs.
        """
        return connections.outputs(self._unit(unit, model, dataset), arguments.count(k))

    def similar_images(
        self, image: ImageName, layer: str, k: int = 10, model: str | None = None, dataset: str | None = None
    ) -> pd.DataFrame:
        """Return the images that are most similar to the units of a layer.

        Columns: rank, image_id, path, label, class_index, similarity (the cosine of z over the layer's units), n.
        """
        k = arguments.count(k)
        run, source = resolve.find_image(self._runs(model, dataset), image)
        dense, within = self._dense[run.name], resolve.find_layer(run, layer)
        if isinstance(source, Path):
            values = self.probe(run).row(source, np.arange(within.start, within.stop)).value
            z = similarity.standing(dense, within, values)
            return similarity.similar_images(dense, within, k, None, z)
        z = similarity.standing_of(dense, within, source)
        return similarity.similar_images(dense, within, k, source, z)

    def both(
        self,
        a: str,
        b: str,
        without: bool = False,
        k: int = 20,
        model: str | None = None,
        dataset: str | None = None,
    ) -> pd.DataFrame:
        """Return the images on which both units are high, or, with `without`, a is high and b is not.

        Columns: rank, image_id, path, label, class_index, value_a, tail_p_a, value_b, tail_p_b, n. By the larger
        tail_p, then the sum of the two. With `without`, b is zero or below its median image, and the order is by the
        tail_p of a, then that of b falling. If the units are of two runs, only images that both accepted are listed.
        """
        k = arguments.count(k)
        unit_a, unit_b = self._unit(a, model, dataset), self._unit(b, model, dataset)
        return unit_pairs.both(self._dense_of(unit_a), unit_a, self._dense_of(unit_b), unit_b, k, without)

    def units_for_class(
        self,
        label: ClassName,
        k: int | None = 20,
        layer: str | Sequence[str] | None = None,
        model: str | None = None,
        dataset: str | None = None,
    ) -> pd.DataFrame:
        """Return the units that tell a class (index, synset or label) from the rest.

        Columns: model, layer, channel, rank, auc, mean_max, z, selectivity, top_class, class_index, label, n. By auc
        falling, then z of the class mean falling.
        """
        run = resolve.the_one(self._runs(model, dataset), f"class {arguments.spelled(label)}")
        return class_units.units_for_class(run, resolve.find_class(run, label), arguments.count_or_all(k), layer)

    def class_selectivity(
        self,
        k: int | None = None,
        layer: str | Sequence[str] | None = None,
        model: str | None = None,
        dataset: str | None = None,
    ) -> pd.DataFrame:
        """Return units by class selectivity falling: model, layer, channel, rank, selectivity, top_class, label, n.

        selectivity = (best class mean - mean of the others) / their sum, on per-image maxima.
        """
        run = resolve.the_one(self._runs(model, dataset), "class_selectivity")
        return class_selectivity.class_selectivity(run, resolve.units_of_layers(run, layer), arguments.count_or_all(k))

    def separating_units(
        self,
        images_a: ClassName | Sequence[ImageName],
        images_b: ClassName | Sequence[ImageName],
        k: int | None = 20,
        layer: str | Sequence[str] | None = None,
        model: str | None = None,
        dataset: str | None = None,
    ) -> pd.DataFrame:
        """Return the units that best tell two sets of images apart, by |auc - 0.5| falling.

        Each set is a class (index, synset or label) or a list of images. Columns: model, layer, channel, rank, auc
        (near 1: high on a; near 0: high on b), mean_a, mean_b, z (their difference in the unit's standard deviations),
        n_a, n_b, n.
        """
        run = resolve.the_one(self._runs(model, dataset), "separating_units")
        a, b = (resolve.find_images(run, images) for images in (images_a, images_b))
        units = resolve.units_of_layers(run, layer)
        return separating_units.separating_units(self._dense[run.name], a, b, units, arguments.count_or_all(k))

    def compare(
        self,
        model_a: str,
        model_b: str,
        k: int | None = 20,
        layer: str | Sequence[str] | None = None,
        dataset: str | None = None,
    ) -> pd.DataFrame:
        """Return which units differ between two models, or two checkpoints, on the same images; most changed first.

        Columns: model, layer, channel, other_model, other_layer, other_channel, rank, change = 1 - correlation,
        correlation, n. With the same layers each unit is compared with itself, otherwise with the unit of model_b that
        correlates with it best.
        """
        a, b = (resolve.the_one(self._runs(m, dataset), f"model {arguments.spelled(m)}") for m in (model_a, model_b))
        return comparison.compare(self._dense[a.name], self._dense[b.name], arguments.count_or_all(k), layer)

    def polysemantic_units(
        self,
        k: int | None = 20,
        layer: str | Sequence[str] | None = None,
        model: str | None = None,
        dataset: str | None = None,
    ) -> pd.DataFrame:
        """Return the units whose highest images are of several classes that are unlike each other.

        Columns: model, layer, channel, rank, spread, share, classes, labels, n; by spread falling. share is the part of
        the stored highest images whose classes the unit fires for; spread is share x the mean distance of two of their
        classes. The answer is empty if no unit of the run fires for any class.
        """
        run = resolve.the_one(self._runs(model, dataset), "polysemantic_units")
        return polysemantic.polysemantic_units(run, resolve.units_of_layers(run, layer), arguments.count_or_all(k))

    def unit_states(
        self, layer: str | Sequence[str] | None = None, model: str | None = None, dataset: str | None = None
    ) -> pd.DataFrame:
        """Return the units that are dead, always on, or clipped on most images.

        Columns: model, layer, channel, state, fraction_active, saturated, maximum, n.
        """
        run = resolve.the_one(self._runs(model, dataset), "unit_states")
        return unit_states.unit_states(run, resolve.units_of_layers(run, layer))

    def image_summary(self, image: ImageName, model: str | None = None, dataset: str | None = None) -> pd.DataFrame:
        """Return one row per layer for an image.

        Columns: model, layer, units, active, rare, expected, channel, value, tail_p, z, y, x, n. active
        counts units above zero, and rare those with tail_p <= 0.01, of which `expected` are usual. channel and the
        columns after it are of the layer's first unit in the order of top_units.
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
        """Return a unit's feature visualization, uint8 [H, W, 3].

        The view `visualizations` says how far it can be trusted.
        """
        kind, direction = arguments.text("kind", kind), arguments.text("direction", direction)
        repeat = arguments.whole("repeat", repeat)
        return stored_pictures.visualization(self._unit(unit, model, dataset), kind, direction, repeat)

    def unit(self, unit: str, model: str | None = None, dataset: str | None = None) -> UnitRecord:
        """Return everything known about one unit."""
        asked = self._unit(unit, model, dataset)
        return unit_record(self._dense_of(asked), asked)

    def contact_sheet(self, unit: str, model: str | None = None, dataset: str | None = None) -> Image.Image:
        """Draw a picture of everything known about one unit."""
        from query.presentation.contact_sheet import contact_sheet

        asked = self._unit(unit, model, dataset)
        return contact_sheet(self._dense_of(asked), asked)

    def explain(
        self,
        image: ImageName,
        target: ClassName | None = None,
        against: ClassName | None = None,
        layer: str | None = None,
        method: str = "integrated",
        baseline: str | None = None,
        groups: int = 6,
        render: int = 0,
        k: int = 5,
        *,
        model: str | None = None,
        dataset: str | None = None,
    ) -> Explained:
        """Explain why the network says one class about a picture, and not another; the model runs on it.

        target, against: classes of the network's output, by index or label; by default the first two predictions.
        against="" explains the target's logit alone. `layer`: the layer whose units and positions the score is
        attributed to; by default the last one with a map. method: "integrated" (integrated gradients), "patching" (the
        gradient times the distance from the baseline) or "gradient" (gradient x activation). baseline: "mean" (each
        unit's mean over the dataset) or "zero", which alone goes with "gradient". `k`: so many units with the highest
        attributions, and with the lowest, are ablated. `render`: so many steps of feature visualization for the groups
        and the units ablated, a minute for 128; by default only stored pictures are shown. The result has the frames
        predictions, units, positions and groups, the arrays (`values`), `sentences` that say what the numbers mean,
        and `sheet()`, a picture of all of it.
        """
        from query.explanation.explained import explained, pixels_of, same_picture

        run, source = resolve.find_image(self._runs(model, dataset), image)
        count, steps, each = arguments.whole("groups", groups), arguments.whole("render", render), arguments.count(k)
        if steps < 0:
            raise UsageError(f"render={steps}: expected 0 or more")
        dense, probe = self._dense[run.name], self.probe(run)
        image_id = source if isinstance(source, int) else same_picture(run, source)
        name = arguments.spelled(image)
        if image_id is not None:
            name = str(run.describe_images(np.array([image_id]))["path"][0])
        return explained(
            dense, probe, name, image_id, pixels_of(dense, probe, source), target, against, layer, method, baseline,
            count, steps, each,
        )  # fmt: skip

    def close(self) -> None:
        """Close all files and end the process that answers SQL. A closed store answers nothing more."""
        for dense in self._dense.values():
            dense.close()
        if self._worker is not None:
            self._worker.close()
        self._database.close()

    def __enter__(self) -> Scope:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def records(self) -> dict[str, Dense]:
        """The dense record of each run that has folded, by the run's name.

        The page reads more of it than questions do.
        """
        return {run.name: self._dense[run.name] for run in self._all_runs}

    def take_models_of(self, other: Scope) -> None:
        """Take over the models that another scope of the same store has opened."""
        for name, probe in other._probes.items():
            run = self._dense[name].run if name in self._dense else None
            if run is not None and run.has("layers") and run.fingerprint == probe.run.fingerprint:
                self._probes[name] = probe

    def most_images(self) -> int:
        """Return the accepted images of the run that has most."""
        return max((run.n for run in self._all_runs), default=0)

    def most_units(self) -> int:
        """Return the units of the run that has most."""
        return max((run.units for run in self._all_runs), default=0)

    @functools.cached_property
    def _all_runs(self) -> list[Run]:
        """Runs that have folded: before that nothing of a run can be answered."""
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
        run, source = resolve.find_image(self._runs(model, dataset), image)
        return run, self._row_of(run, source, resolve.units_of_layers(run, layer))

    def _row_of(self, run: Run, image: int | Path, units: NDArray[np.int64], enough: int | None = None) -> ImageRow:
        if isinstance(image, Path):
            return self.probe(run).row(image, units)
        return image_units.stored_row(self._dense[run.name], image, units, enough)

    def probe(self, run: Run) -> Probe:
        """Return the run's model, ready to measure pictures. It is opened the first time."""
        from query.live import Probe

        with self._opening:
            if run.name not in self._probes:
                self._probes[run.name] = Probe(self._dense[run.name], self._model_code)
            return self._probes[run.name]
