"""The source `parquet:PATTERN`: one column holds the bytes of pictures and another their classes.

Hugging Face datasets store ImageNet this way. A picture's offset is its row in the file. Files are read one row group
at a time, and the last few row groups stay in memory.
"""

from __future__ import annotations

import functools
import json
import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.data.shard_files import ShardedSource
from pipeline.data.source import ClassName, Entry, class_names, class_number, in_order_of_class
from store.errors import UsageError

IMAGES = ("image", "img", "jpg", "jpeg", "png", "bytes", "picture")
LABELS = ("label", "labels", "fine_label", "class", "cls", "class_index", "target", "synset", "wnid")
KEPT = 4  # row groups in memory, because some threads are ahead of others


@dataclass(frozen=True)
class _Columns:
    """The columns that hold the bytes, the path and the class; `path` and `label` are None if there is no such column.

    `names` are the names of the classes, if the file's metadata has them.
    """

    image: str
    path: str | None
    label: str | None
    names: tuple[str, ...] | None


class ParquetSource(ShardedSource):
    kind = "parquet"

    def __init__(self, text: str, pattern: str, name: str) -> None:
        super().__init__(text, pattern, name)
        self._groups: OrderedDict[tuple[str, int], pa.Array] = OrderedDict()
        self._lock = threading.Lock()

    @functools.cached_property
    def entries(self) -> tuple[Entry, ...]:
        rows: list[tuple[str, int, str | None, Any]] = []
        names: tuple[str, ...] | None = None
        for file in self.shards.files:
            columns = self._columns(file)
            names = names or columns.names
            rows += self._rows(file, columns)
        if not rows:
            raise UsageError(f"dataset source {self.text} holds no rows")
        paths = _paths(rows)
        labels = _labels([row[3] for row in rows], names)
        return in_order_of_class(
            Entry(path, label, file, row) for (file, row, _, _), path, label in zip(rows, paths, labels, strict=True)
        )

    def read(self, entry: Entry) -> bytes:
        if entry.source_file is None or entry.offset is None:
            raise ValueError(f"{entry.path}: an entry of a Parquet file must have a file and a row")
        starts = self._starts(entry.source_file)
        group = int(np.searchsorted(starts, entry.offset, side="right")) - 1
        data = self._group(entry.source_file, group)[entry.offset - int(starts[group])].as_py()
        if data is None:
            raise OSError(5, "the row holds no bytes")
        return bytes(data)

    def _group(self, file: str, group: int) -> pa.Array:
        with self._lock:  # one thread reads a row group and the others wait for it
            if (file, group) in self._groups:
                self._groups.move_to_end((file, group))
                return self._groups[file, group]
            column = self._columns(file).image
            try:
                with pq.ParquetFile(self.shards.path(file)) as parquet:
                    table = parquet.read_row_group(group, columns=[column])
            except (pa.ArrowException, OSError) as error:
                raise OSError(5, f"{file}, row group {group}: {error}") from error
            pictures = table.flatten().column(column).combine_chunks()
            self._groups[file, group] = pictures
            while len(self._groups) > KEPT:
                self._groups.popitem(last=False)
            return pictures

    @functools.cache  # noqa: B019  (a source lives as long as its process)
    def _starts(self, file: str) -> np.ndarray[Any, np.dtype[np.int64]]:
        meta = pq.read_metadata(self.shards.path(file))
        return np.cumsum([0, *(meta.row_group(i).num_rows for i in range(meta.num_row_groups))])[:-1]

    @functools.cache  # noqa: B019
    def _columns(self, file: str) -> _Columns:
        path = self.shards.path(file)
        try:
            schema = pq.read_schema(path)
        except (pa.ArrowException, OSError) as error:
            raise UsageError(f"{path} is no whole Parquet file: {error}") from error
        image = next((n for n in IMAGES if n in schema.names), None)
        if image is None or not _holds_bytes(schema.field(image).type):
            raise UsageError(
                f"{path}: no column of picture bytes: expected {', '.join(IMAGES)}, binary or a struct of bytes and "
                f"path; it has {', '.join(f'{f.name} ({f.type})' for f in schema)}"
            )
        label = next((n for n in LABELS if n in schema.names), None)
        image_type = schema.field(image).type
        if pa.types.is_struct(image_type):
            inside = {f.name for f in image_type}
            beside = f"{image}.path" if "path" in inside else None
            return _Columns(f"{image}.bytes", beside, label, _class_label(schema, label))
        beside = next((n for n in ("path", "file_name", "filename", "image_path") if n in schema.names), None)
        return _Columns(image, beside, label, _class_label(schema, label))

    def _rows(self, file: str, columns: _Columns) -> list[tuple[str, int, str | None, Any]]:
        wanted = [c for c in (columns.path, columns.label) if c]
        with pq.ParquetFile(self.shards.path(file)) as parquet:
            table = parquet.read(columns=wanted).flatten() if wanted else None
            count = parquet.metadata.num_rows
        paths = table.column(columns.path).to_pylist() if table is not None and columns.path else [None] * count
        labels = table.column(columns.label).to_pylist() if table is not None and columns.label else [None] * count
        return [(file, row, p, y) for row, (p, y) in enumerate(zip(paths, labels, strict=True))]


def _holds_bytes(column_type: pa.DataType) -> bool:
    if pa.types.is_struct(column_type):
        return any(f.name == "bytes" and _holds_bytes(f.type) for f in column_type)
    return bool(pa.types.is_binary(column_type) or pa.types.is_large_binary(column_type))


def _class_label(schema: pa.Schema, label: str | None) -> tuple[str, ...] | None:
    """Return the names of a Hugging Face ClassLabel from the file's metadata, or None if it has none."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return tuple(str(n) for n in features[label]["names"])
    except (KeyError, TypeError, ValueError):
        return None


def _paths(rows: list[tuple[str, int, str | None, Any]]) -> list[str]:
    """Return the paths of the pictures: as stored beside them if these are unique, else with the file's name before.

    If a path is missing, or paths repeat within a file, the paths are FILE/ROW.
    """
    for path in ([r[2] for r in rows], [f"{r[0]}/{r[2]}" if r[2] else None for r in rows]):
        if all(path) and len(set(path)) == len(path):
            return [str(p) for p in path]
    return [f"{file}/{row:06d}" for file, row, _, _ in rows]


def _labels(values: list[Any], names: tuple[str, ...] | None) -> list[ClassName | None]:
    known = {v for v in values if v is not None}
    if all(isinstance(v, str) for v in known):
        of_name = class_names(known)
        return [None if v is None else of_name[v] for v in values]
    if any(isinstance(v, str) for v in known):
        raise UsageError("labels are partly text and partly numbers: expected all text or all numbers")
    numbers = {v: class_number(v, "a label column") for v in known}
    beyond = [n for n in numbers.values() if names and n is not None and n >= len(names)]
    if beyond:
        raise UsageError(f"label {max(beyond)} is beyond the {len(names or ())} classes that the file's metadata names")
    synsets = class_names(names) if names else {}
    if not any(c.synset and c.label != c.synset for c in synsets.values()):
        synsets = {}  # plain names keep the class numbers of the column
    classes = {v: synsets.get(names[n], ClassName(n, names[n], None)) if names else ClassName(n, str(n), None)
               for v, n in numbers.items() if n is not None}  # fmt: skip
    return [classes.get(v) for v in values]
