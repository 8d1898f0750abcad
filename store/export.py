"""Export: write a smaller store, valid by itself, with a whole run or with some of its layers and all their data."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from store import commits, hdf5, layout, parquet, publish, schema
from store.commits import Record
from store.errors import UsageError
from store.hdf5 import Array
from store.intact import Intact
from store.layer_globs import matching
from store.publish import Publication

_ROWS = 4096  # rows (images) of the record that are copied at a time
_BY_LAYER = (schema.UNITS, schema.TOP_EXAMPLES, schema.CLASS_STATS, schema.NEIGHBORS, schema.VISUALIZATIONS)
_WHOLE = (schema.MODELS, schema.RUNS, schema.REJECTED, schema.PREDICTIONS)


def export(
    root: Path, run: str, to: Path, globs: Sequence[str] = (), advance: Callable[[str], None] = lambda path: None
) -> None:
    """Write a new store with one finished run: all of it, or the layers that match `globs`.

    Raises UsageError if there is no such run, if the run is not folded yet, if a file of it is damaged, if a glob
    matches nothing, or if `to` exists and is not an empty folder.
    """
    publish.check_version(root)
    records = commits.records(root, run)
    if not records:
        runs = ", ".join(sorted({record.run for record in commits.records(root)})) or "none"
        raise UsageError(f"run {run!r} is unknown in {root}; it has {runs}")
    if not any(file.path == layout.table(run, "layers") for _, file in commits.files_of(records)):
        raise UsageError(f"run {run} is not folded yet: finish it with `unitscope run`")
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise UsageError(f"--to {to} exists and is not empty: choose a new folder")
    # What is written gets digests of its own, so damage has to be found here.
    intact = Intact(root, records)
    sources = (file.path for _, file in commits.files_of(records) if not layout.is_partial(file.path))
    intact.require(intact.root / path for path in sorted(set(sources)))
    kept = layers(root, run, globs)
    publish.ensure_store(to)
    if globs:
        _Part(root, run, to, records, kept, advance).write()
    else:
        _whole(root, to, records, advance)
    publish.write_manifest(to)


def layers(root: Path, run: str, globs: Sequence[str]) -> list[str]:
    """Return the names of the run's layers that match, in order of execution; all of them if there are no globs."""
    table = parquet.read(root / layout.table(run, "layers"), ["layer", "layer_index"]).sort_by("layer_index")
    names: list[str] = table["layer"].to_pylist()
    return matching(names, globs) if globs else names


def _whole(root: Path, to: Path, records: Sequence[Record], advance: Callable[[str], None]) -> None:
    """Copy all files under the same records. Partials are only listed: a finished run has removed them."""
    for record in records:
        partials = [file for file in record.files if layout.is_partial(file.path)]
        with Publication(to, record.run, record.stage, record.shard, record.fingerprint) as out:
            for file in record.files:
                if file not in partials:
                    _copied(root, out, file.path)
                    advance(file.path)
            out.commit(record.facts, partials)


def _copied(root: Path, out: Publication, relative: str) -> None:
    shutil.copyfile(root / relative, out.path(relative))


class _Part:
    """The export of some layers of a run.

    It gets its own fingerprint, so that no later run continues it as if it were whole.
    """

    def __init__(
        self,
        root: Path,
        run: str,
        to: Path,
        records: Sequence[Record],
        names: list[str],
        advance: Callable[[str], None],
    ) -> None:
        self.root, self.run, self.to, self.names, self.advance = root, run, to, names, advance
        self.records = {(record.stage, record.shard): record for record in records}
        self.files = {file.path for record in records for file in record.files}
        text = "\n".join([records[0].fingerprint, *names])
        self.fingerprint = hashlib.sha256(text.encode()).hexdigest()
        table = parquet.read(root / layout.table(run, "layers"), ["layer", "layer_index", "channels"])
        table = table.sort_by("layer_index")
        stops = np.cumsum(table["channels"].to_numpy())
        spans = zip(table["layer"].to_pylist(), stops - table["channels"].to_numpy(), stops, strict=True)
        self.columns = np.concatenate([np.arange(a, b) for name, a, b in spans if name in set(names)])

    def write(self) -> None:
        index = self._last("index")
        with self._publication("index", index.shard) as out:
            for file in index.files:
                _copied(self.root, out, file.path)
            out.commit(index.facts)
        with self._publication("scan", "export") as out:
            rejected = [r for (stage, _), record in self.records.items() if stage == "scan"
                        for r in record.facts.get("rejected", [])]  # fmt: skip
            out.commit({"rejected": sorted(rejected)})
        with self._publication("fold", "finish") as out:
            self._tables(out)
            self._arrays(out)
            _copied(self.root, out, layout.config(self.run))
            out.commit(self._last("fold").facts)
        self._pictures()
        self._connections()

    def _publication(self, stage: str, shard: str) -> Publication:
        return Publication(self.to, self.run, stage, shard, self.fingerprint)

    def _last(self, stage: str) -> Record:
        """Return the record of the shard that completes a stage; its facts describe the whole stage."""
        of_stage = {shard: record for (of, shard), record in sorted(self.records.items()) if of == stage}
        return of_stage.get("finish", list(of_stage.values())[-1])

    def _has(self, relative: str) -> bool:
        return relative in self.files and not layout.is_partial(relative)

    def _tables(self, out: Publication) -> None:
        for table in _WHOLE:
            relative = layout.table(self.run, table.name)
            if self._has(relative):
                _copied(self.root, out, relative)
        for relative, table in [
            *((layout.table(self.run, table.name), table) for table in (schema.LAYERS, *_BY_LAYER[:4])),
            (layout.class_stats_by_class(self.run), schema.CLASS_STATS),
        ]:
            if self._has(relative):
                self._filtered(out, relative, table, "layer")
        self._edges(out)
        for name in self.names:
            _copied(self.root, out, layout.tail_by_unit(self.run, name))
        for relative in sorted(self.files):
            if relative.startswith(f"runs/{self.run}/tables/tail_by_image/"):
                self._filtered(out, relative, schema.TAIL, "layer")

    def _filtered(self, out: Publication, relative: str, table: schema.Table, column: str) -> None:
        data = parquet.read(self.root / relative)
        self._written(out, relative, table, data.filter(self._kept(data[column])))

    def _written(self, out: Publication, relative: str, table: schema.Table, data: pa.Table) -> None:
        kept = parquet.complete(table, data)
        plain = [pa.field(f.name, pa.string() if pa.types.is_dictionary(f.type) else f.type) for f in kept.schema]
        parquet.write(out.path(relative), table, kept.cast(pa.schema(plain)))  # drop names of other layers
        self.advance(relative)

    def _kept(self, column: pa.ChunkedArray) -> pa.ChunkedArray:
        return pc.is_in(column.cast(pa.string()), pa.array(self.names, pa.string()))

    def _edges(self, out: Publication) -> None:
        """Write the edges whose two layers are both kept."""
        relative = layout.table(self.run, "edges")
        data = parquet.read(self.root / relative)
        both = pc.and_(self._kept(data["source"]), self._kept(data["target"]))
        parquet.write(out.path(relative), schema.EDGES, data.filter(both))

    def _arrays(self, out: Publication) -> None:
        for name in self.names:
            _copied(self.root, out, layout.codes_by_unit(self.run, name))
            self.advance(name)
        for name in ("codes", "sketches", "components"):
            relative = layout.array(self.run, name)
            if self._has(relative):
                self._layers_of(out, relative)
        for relative in sorted(self.files):
            if relative.startswith(f"runs/{self.run}/arrays/codes_by_image/"):
                self._columns_of(out, relative)
            elif relative.startswith(f"runs/{self.run}/arrays/coordinates/"):
                self._layers_of(out, relative)
        relative = layout.array(self.run, "sample")
        if self._has(relative):
            sample = hdf5.read(self.root / relative, "max")[self.columns]
            hdf5.write(out.path(relative), {"max": Array(sample, (64, sample.shape[1]), "huffman")})

    def _layers_of(self, out: Publication, relative: str) -> None:
        """Copy the kept layers of a file that has one group per layer, which may hold further groups."""
        arrays: dict[str, Array] = {}
        with hdf5.reading(self.root / relative) as file:
            for name in self.names:
                for path in hdf5.datasets(file, name):
                    data = hdf5.dataset(file, path)
                    arrays[path] = Array(data[()], data.chunks, data.compression)
        hdf5.write(out.path(relative), arrays)
        self.advance(relative)

    def _columns_of(self, out: Publication, relative: str) -> None:
        arrays: dict[str, Array] = {}
        with hdf5.reading(self.root / relative) as file:
            for name in ("max", "mean"):
                data = hdf5.dataset(file, name)
                kept = np.empty((data.shape[0], len(self.columns)), np.uint8)
                for first in range(0, len(kept), _ROWS):
                    kept[first : first + _ROWS] = data[first : first + _ROWS][:, self.columns]
                arrays[name] = Array(kept, layout.image_chunk(len(self.columns)), "huffman")
        hdf5.write(out.path(relative), arrays)
        self.advance(relative)

    def _pictures(self) -> None:
        """Copy the stored pictures and maps of these layers' top examples, and their feature visualizations."""
        relative = layout.example_images(self.run)
        if self._has(relative):
            with self._publication("examples", "finish") as out:
                self._examples(out, relative)
                out.commit(self._last("examples").facts)
        files = [layout.visualizations(self.run, name) for name in self.names]
        table = self._visualization_tables()
        if table and any(map(self._has, files)):
            with self._publication("visualize", "finish") as out:
                for relative in filter(self._has, files):
                    _copied(self.root, out, relative)
                for relative in table:
                    self._filtered(out, relative, schema.VISUALIZATIONS, "layer")
                out.commit()

    def _connections(self) -> None:
        """Write the connections between units of these layers."""
        relative = layout.table(self.run, "connections")
        if self._has(relative):
            data = parquet.read(self.root / relative)
            both = pc.and_(self._kept(data["layer"]), self._kept(data["source_layer"]))
            with self._publication("connections", "finish") as out:
                self._written(out, relative, schema.CONNECTIONS, data.filter(both))
                out.commit()

    def _visualization_tables(self) -> list[str]:
        single = layout.table(self.run, "visualizations")
        several = [p for p in sorted(self.files) if p.startswith(f"runs/{self.run}/tables/visualizations/")]
        return [single] if self._has(single) else several

    def _examples(self, out: Publication, relative: str) -> None:
        wanted = _example_ids(self.to / layout.table(self.run, "top_examples"))
        with hdf5.reading(self.root / relative) as file:
            ids, offsets = (hdf5.dataset(file, name)[()] for name in ("image_ids", "offsets"))
            rows = np.flatnonzero(np.isin(ids, wanted))
            jpeg = hdf5.dataset(file, "jpeg")
            pieces = [jpeg[offsets[row] : offsets[row + 1]] for row in rows]
            arrays = {
                "image_ids": Array(ids[rows]),
                "offsets": Array(np.cumsum([0, *(len(piece) for piece in pieces)]).astype(np.int64)),
                "jpeg": Array(np.concatenate([np.zeros(0, np.uint8), *pieces]), (1 << 20,)),
            }
            for name in self.names:
                if f"maps/{name}" in file:  # not of layers that are not spatial
                    maps = hdf5.dataset(file, f"maps/{name}")
                    arrays[f"maps/{name}"] = Array(maps[()], maps.chunks, "gzip")
        hdf5.write(out.path(relative), arrays)
        self.advance(relative)


def _example_ids(path: Path) -> NDArray[np.int64]:
    ids: NDArray[np.int64] = np.unique(parquet.read(path, ["image_id"])["image_id"].to_numpy())
    return ids
