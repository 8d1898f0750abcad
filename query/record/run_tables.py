"""The layers, unit statistics and accepted images of one run as arrays, each read once when it is first asked for."""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from query.record.parquet_index import Lookup
from query.sql.catalog import Catalog, RunFiles
from query.sql.database import Database
from store import parquet, views
from store.errors import UsageError


@dataclass(frozen=True)
class Layer:
    """A row of the table `layers`. Its units are columns start to stop - 1 of the dense record."""

    index: int
    name: str
    op: str
    channels: int
    height: int
    width: int
    spatial: bool
    signed: bool
    upper_bound: float | None
    rf_size: int | None
    rf_stride: int | None
    rf_offset: int | None
    rf_global: bool
    rf_gated: bool
    start: int

    @property
    def stop(self) -> int:
        return self.start + self.channels

    @property
    def positions(self) -> int:
        return self.height * self.width

    @property
    def has_places(self) -> bool:
        """Whether its map has several positions, and these are places of the picture."""
        return self.spatial and self.positions > 1

    @property
    def columns(self) -> slice:
        return slice(self.start, self.stop)


@dataclass(frozen=True)
class DatasetClass:
    index: int
    synset: str | None
    label: str


@dataclass(frozen=True)
class UnitStatistics:
    """Columns of the table `units`, float64 [U] in unit order; NaN where not known."""

    max_mean: NDArray[np.float64]
    max_sd: NDArray[np.float64]
    maximum: NDArray[np.float64]
    fraction_active: NDArray[np.float64]
    saturated: NDArray[np.float64]
    selectivity: NDArray[np.float64]
    top_class: NDArray[np.float64]
    dead: NDArray[np.float64]


@dataclass(frozen=True)
class Images:
    """Whether this run accepted each image of the dataset, and the image's class (-1: none). Both by image_id."""

    accepted: NDArray[np.bool_]
    class_index: NDArray[np.int32]

    @functools.cached_property
    def _ranges(self) -> dict[int, slice]:
        """The range from the first to the last image id of each class: short, for ids are mostly sorted by class."""
        order = np.argsort(self.class_index, kind="stable")
        classes, first, count = np.unique(self.class_index[order], return_index=True, return_counts=True)
        ends = order[first], order[first + count - 1]
        return {int(c): slice(int(a), int(b) + 1) for c, a, b in zip(classes, *ends, strict=True)}

    def within(self, class_index: int) -> slice:
        """Return the range of image ids that holds all images of a class, perhaps with others between them."""
        return self._ranges.get(class_index, slice(0, 0))

    def of_class(self, class_index: int | None) -> NDArray[np.int64]:
        """Return the rising ids of a class's accepted images, or of all accepted images if the class is None."""
        if class_index is None:
            return self.all
        within = self.within(class_index)
        inside = self.accepted[within] & (self.class_index[within] == class_index)
        ids: NDArray[np.int64] = np.flatnonzero(inside) + within.start
        return ids

    @functools.cached_property
    def all(self) -> NDArray[np.int64]:
        """The rising ids of all accepted images."""
        return np.flatnonzero(self.accepted)


class Run:
    """Read one run. Its U units are in the order (layer_index, channel) everywhere; an index there is a unit index."""

    def __init__(self, files: RunFiles, catalog: Catalog, database: Database) -> None:
        self.files, self.catalog, self.database = files, catalog, database
        self.name, self.model, self.dataset = files.name, files.model, files.dataset
        self._lookups: dict[Path, Lookup] = {}

    def rows(
        self, table: str, columns: str, where: str = "true", parameters: Sequence[Any] = (), last: str = ""
    ) -> pa.Table:
        """Select columns of one of this run's tables. `last` is an ORDER BY or LIMIT."""
        paths = self.files.tables.get(table) or self._dataset_table(table)
        if not paths:
            raise UsageError(f"run {self.name} has no table {table} yet: finish it with `unitscope run`")
        return self.rows_of(paths, columns, where, parameters, last)

    def rows_of(
        self, paths: Sequence[Path], columns: str, where: str = "true", parameters: Sequence[Any] = (), last: str = ""
    ) -> pa.Table:
        """Select columns of some Parquet files."""
        self.catalog.intact.require(paths)
        query = f"SELECT {columns} FROM {views.parquet(paths)} WHERE {where} {last}"
        return self.database.table(query, list(parameters))

    def has(self, table: str) -> bool:
        return table in self.files.tables

    def array(self, relative: str) -> Path:
        """Return the path of a recorded HDF5 file."""
        if relative not in self.files.arrays:
            raise UsageError(f"run {self.name} has no {relative} yet: finish it with `unitscope run`")
        return self.files.arrays[relative]

    @functools.cached_property
    def layers(self) -> tuple[Layer, ...]:
        fields = [name for name in Layer.__dataclass_fields__ if name not in ("index", "name", "start")]
        layers: list[Layer] = []
        start = 0
        for row in self.rows("layers", "*", last="ORDER BY layer_index").to_pylist():
            row.setdefault("spatial", True)  # not yet a column in stores of 0.1
            named = {"index": row["layer_index"], "name": row["layer"], "start": start}
            layer = Layer(**named, **{field: row[field] for field in fields})
            if layer.channels < 0 or layer.height < 1 or layer.width < 1:
                raise self.inconsistent(
                    f"layer {layer.name} has {layer.channels} x {layer.height} x {layer.width} values"
                )
            layers.append(layer)
            start += layer.channels
        if len({layer.name for layer in layers}) < len(layers):
            raise self.inconsistent("two layers have one name")
        if not layers or start != self.rows("units", "count(*) AS units")["units"][0].as_py():
            raise self.inconsistent(f"its layers have {start} units, and the table units has others")
        return tuple(layers)

    def inconsistent(self, what: str) -> UsageError:
        """Return the error for tables and arrays that do not belong together, which only a forged store has."""
        return UsageError(f"run {self.name}: {what}: do not trust this store (see `unitscope verify`)")

    @functools.cached_property
    def by_name(self) -> dict[str, Layer]:
        return {layer.name: layer for layer in self.layers}

    @functools.cached_property
    def units(self) -> int:
        """How many units the run has."""
        return self.layers[-1].stop if self.layers else 0

    @functools.cached_property
    def signed(self) -> NDArray[np.bool_]:
        """Whether each unit can be negative, bool [U]."""
        return np.concatenate([np.full(layer.channels, layer.signed) for layer in self.layers])

    @functools.cached_property
    def one_position(self) -> NDArray[np.bool_]:
        """Whether each unit's map is a single position, so that its maximum is at (0, 0), bool [U]."""
        return np.concatenate([np.full(layer.channels, layer.positions == 1) for layer in self.layers])

    def layers_of(self, units: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the layer_index of each unit."""
        layer_indices: NDArray[np.int64] = np.searchsorted(self.starts, units, side="right") - 1
        return layer_indices

    def layer_of(self, unit: int) -> Layer:
        """Return the layer of the unit with this unit index."""
        return self.layers[int(np.searchsorted(self.starts, unit, side="right")) - 1]

    def unit_indices(self, table: pa.Table) -> NDArray[np.int64]:
        """Return the unit index of each row of a table that has the columns `layer` and `channel`."""
        names = table["layer"].combine_chunks()
        names = names if isinstance(names, pa.DictionaryArray) else names.dictionary_encode()
        known = names.dictionary.to_pylist()
        unknown = [name for name in known if name not in self.by_name]
        if unknown:
            raise self.inconsistent(f"a table names the layer {unknown[0]!r}, which layers does not have")
        starts, stops = (
            np.array([getattr(self.by_name[n], end) for n in known], np.int64) for end in ("start", "stop")
        )
        rows = names.indices.to_numpy()
        indices: NDArray[np.int64] = starts[rows] + table["channel"].to_numpy()
        if ((indices < starts[rows]) | (indices >= stops[rows])).any():
            raise self.inconsistent("a table names channels that its layer does not have")
        return indices

    @functools.cached_property
    def starts(self) -> NDArray[np.int64]:
        """The unit index of each layer's channel 0."""
        return np.array([layer.start for layer in self.layers], np.int64)

    @functools.cached_property
    def statistics(self) -> UnitStatistics:
        names = tuple(UnitStatistics.__dataclass_fields__)
        table = self.rows("units", f"layer, channel, {', '.join(names)}")
        unit_indices = self.unit_indices(table)
        if len(np.unique(unit_indices)) != self.units:
            raise self.inconsistent("units does not have one row for each unit")
        arrays = {name: np.full(self.units, np.nan) for name in names}
        for name, array in arrays.items():
            array[unit_indices] = table[name].to_numpy()
        return UnitStatistics(**arrays)

    def z(self, values: NDArray[np.float32], units: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return (value - max_mean) / max_sd for one value of each of these units; 0 for a unit that never varies."""
        mean, sd = self.statistics.max_mean[units], self.statistics.max_sd[units]
        return standardized(values, mean, sd)

    @functools.cached_property
    def classes(self) -> tuple[DatasetClass, ...]:
        """The classes of the dataset, by index."""
        rows = self.rows("classes", "class_index, synset, label", last="ORDER BY class_index").to_pylist()
        return tuple(DatasetClass(row["class_index"], row["synset"], row["label"]) for row in rows)

    @functools.cached_property
    def model_row(self) -> dict[str, Any]:
        """The run's row of the table `models`."""
        (row,) = self.rows("models", "*").to_pylist()
        return dict(row)

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width of the network's input in pixels."""
        return self.model_row["input_height"], self.model_row["input_width"]

    @functools.cached_property
    def fingerprint(self) -> str:
        """What says that two runs have the same results."""
        return str(self.rows("runs", "fingerprint")["fingerprint"][0].as_py())

    @functools.cached_property
    def quantiles(self) -> tuple[float, ...]:
        """The quantiles around which the run keeps pictures of every unit; empty if its config asks for none."""
        if self.files.config is None:
            return ()
        try:
            asked = tomllib.loads(self.files.config.read_text(encoding="utf-8"))["examples"]["quantiles"]
        except (OSError, ValueError, KeyError, TypeError):
            return ()
        whole = isinstance(asked, list) and all(isinstance(q, (int, float)) and 0 <= q <= 1 for q in asked)
        return tuple(float(q) for q in asked) if whole else ()

    @functools.cached_property
    def edges(self) -> tuple[tuple[str, str], ...]:
        """Which layer feeds which, as (source, target), in the order of the table."""
        if not self.has("edges"):
            return ()
        table = self.rows("edges", "source, target")
        return tuple(zip(table["source"].to_pylist(), table["target"].to_pylist(), strict=True))

    @functools.cached_property
    def images(self) -> Images:
        self.catalog.intact.require([self._images_file])
        table = parquet.read(self._images_file, ["status", "class_index"])
        accepted = np.asarray(pc.equal(table["status"], "accepted"))
        if self.has("rejected_images"):
            accepted = accepted.copy()
            rejected = self.rows("rejected_images", "image_id")["image_id"].to_numpy()
            self.check_images(rejected, len(accepted))
            accepted[rejected] = False
        if not accepted.any():
            raise self.inconsistent("no image is accepted, and it has folded")
        return Images(accepted, table["class_index"].fill_null(-1).to_numpy().astype(np.int32))

    def check_images(self, image_ids: NDArray[np.int64], images: int) -> None:
        """Raise UsageError unless all ids are of the dataset's images."""
        if len(image_ids) and not 0 <= image_ids.min() <= image_ids.max() < images:
            raise self.inconsistent(f"a table names an image that the dataset's {images} are not")

    @functools.cached_property
    def n(self) -> int:
        """How many images were accepted. Every tail probability is a share of them."""
        return int(np.count_nonzero(self.images.accepted))

    def describe_images(self, image_ids: NDArray[np.int64]) -> pa.Table:
        """Return path, label and class_index of images, in the order asked."""
        return self.image_rows(image_ids, "path", "label", "class_index")

    def image_rows(self, image_ids: NDArray[np.int64], *columns: str) -> pa.Table:
        """Return columns of the table `images`, in the order asked."""
        self.check_images(image_ids, len(self.images.accepted))
        return self.lookup(self._images_file).at(columns, image_ids)  # row i is image_id i

    def lookup(self, path: Path) -> Lookup:
        """Open one of the run's Parquet files, to read rows of one key from."""
        if path not in self._lookups:
            self.catalog.intact.require([path])
            self._lookups[path] = Lookup(path)
        return self._lookups[path]

    def recorded(self, table: str, relative: str) -> Lookup:
        """Open one file of a table by its path relative to the store."""
        path = self.catalog.root / relative
        if path not in self.files.tables.get(table, ()):
            raise UsageError(f"run {self.name} has no {relative} yet: finish it with `unitscope run`")
        return self.lookup(path)

    def only(self, table: str) -> Path:
        """Return the path of a table that is a single file."""
        if table not in self.files.tables:
            raise UsageError(f"run {self.name} has no table {table} yet: finish it with `unitscope run`")
        return self.files.tables[table][0]

    @property
    def _images_file(self) -> Path:
        return self._dataset_table("images")[0]

    def _dataset_table(self, table: str) -> tuple[Path, ...]:
        path = self.catalog.datasets.get(self.dataset, {}).get(table)
        return (path,) if path else ()


def standardized(
    values: NDArray[np.float32], mean: NDArray[np.float64], sd: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return (value - mean) / sd, and 0 where sd is 0 or NaN."""
    varies = sd > 0  # False for NaN too
    result: NDArray[np.float64] = np.divide(values - mean, sd, out=np.zeros(len(values)), where=varies)
    return result
