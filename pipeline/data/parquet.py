"""The source `parquet:PATTERN`: one column holds the bytes of pictures and another their classes.

Hugging Face datasets store ImageNet this way. A picture's offset is its row in the file. Files are read one row group
at a time, and the last few row groups stay in memory. If a file has no column of classes, a folder such as `label=cat`
above it tells the class, as Hive and Spark write it. If files name their classes in different orders, the names count.
"""

from __future__ import annotations

import functools
import json
import re
import threading
from collections import Counter, OrderedDict
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.data.shard_files import ShardedSource
from pipeline.data.source import ClassName, Entry, class_names, class_number, in_order_of_class
from store.errors import UsageError

IMAGES = ("image", "img", "jpg", "jpeg", "png", "bytes", "picture")
LABELS = ("label", "labels", "fine_label", "class", "cls", "class_index", "target", "synset", "wnid")
_WHOLE = re.compile(r"[+-]?[0-9]+")
_NO_VALUE = "__HIVE_DEFAULT_PARTITION__"  # in place of a value that is missing
KEPT = 4  # row groups in memory, because some threads are ahead of others


@dataclass(frozen=True)
class _Columns:
    """The columns that hold the bytes, the path and the class; `path` and `label` are None if there is no such column.

    `names` are the names of the classes, if the file's metadata has them. `folder` is the class that a folder such as
    `label=cat` gives to the whole file; it is None if there is none or if there is a column of classes.
    """

    image: str
    path: str | None
    label: str | None
    names: tuple[str, ...] | None
    folder: str | None


class _Row(NamedTuple):
    """One picture: its file, its row there, its path, and its class as the file tells it, or None."""

    file: str
    row: int
    path: str | None
    label: Any


class ParquetSource(ShardedSource):
    kind = "parquet"

    def __init__(self, text: str, pattern: str, name: str) -> None:
        super().__init__(text, pattern, name)
        self._groups: OrderedDict[tuple[str, int], pa.Array] = OrderedDict()
        self._lock = threading.Lock()

    @functools.cached_property
    def entries(self) -> tuple[Entry, ...]:
        columns = {file: self._columns(file) for file in self.shards.files}
        folders = [c.folder for c in columns.values() if c.folder is not None]
        numbered = all(_WHOLE.fullmatch(f) for f in folders)  # the folders of a source are all numbers or all names
        rows = [row for file in self.shards.files for row in self._rows(file, columns[file], numbered)]
        if not rows:
            raise UsageError(f"dataset source {self.text} holds no rows")
        labels = _labels(rows, {file: (c.label, c.names) for file, c in columns.items()})
        return in_order_of_class(
            Entry(path, label, row.file, row.row) for row, path, label in zip(rows, _paths(rows), labels, strict=True)
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
        twice = [n for n in (*IMAGES, *LABELS) if schema.names.count(n) > 1]
        if twice:
            raise UsageError(f"{path}: two columns are named {twice[0]!r}: rename one")
        image = next((n for n in IMAGES if n in schema.names), None)
        if image is None or not _holds_bytes(schema.field(image).type):
            raise UsageError(
                f"{path}: no column of picture bytes: expected {', '.join(IMAGES)}, binary or a struct of bytes and "
                f"path; it has {', '.join(f'{f.name} ({f.type})' for f in schema)}"
            )
        label = next((n for n in LABELS if n in schema.names), None)
        if label is not None and not _is_class(schema.field(label).type):
            raise UsageError(
                f"{path}: the labels in column {label!r} are of type {schema.field(label).type}: expected one whole "
                "number or one text for each picture"
            )
        key, folder = (label, None) if label is not None else _class_folder(str(path))
        image_type = schema.field(image).type
        if pa.types.is_struct(image_type):
            inside = {f.name for f in image_type}
            beside = f"{image}.path" if "path" in inside else None
            return _Columns(f"{image}.bytes", beside, label, _class_label(schema, key), folder)
        beside = next((n for n in ("path", "file_name", "filename", "image_path") if n in schema.names), None)
        return _Columns(image, beside, label, _class_label(schema, key), folder)

    def _rows(self, file: str, columns: _Columns, numbered: bool) -> list[_Row]:
        wanted = [c for c in (columns.path, columns.label) if c]
        with pq.ParquetFile(self.shards.path(file)) as parquet:
            table = parquet.read(columns=wanted).flatten() if wanted else None
            count = parquet.metadata.num_rows
        folder = int(columns.folder) if columns.folder is not None and numbered else columns.folder
        paths = table.column(columns.path).to_pylist() if table is not None and columns.path else [None] * count
        labels = table.column(columns.label).to_pylist() if table is not None and columns.label else [folder] * count
        return [_Row(file, row, p, y) for row, (p, y) in enumerate(zip(paths, labels, strict=True))]


def _is_class(column_type: pa.DataType) -> bool:
    """Return whether a column can hold classes: whole numbers, also as floats, or text. A bool is neither."""
    types = pa.types
    if types.is_dictionary(column_type):
        return _is_class(column_type.value_type)
    is_text = types.is_string(column_type) or types.is_large_string(column_type) or str(column_type) == "string_view"
    return bool(
        is_text or types.is_integer(column_type) or types.is_floating(column_type) or types.is_null(column_type)
    )


def _class_folder(path: str) -> tuple[str | None, str | None]:
    """Return the name and the value of the nearest folder such as `label=cat` above a file; (None, None) if none is."""
    for part in reversed(Path(path).parts[:-1]):
        name, equals, value = part.partition("=")
        if equals and name in LABELS:
            return name, None if value == _NO_VALUE else unquote(value)
    return None, None


def _holds_bytes(column_type: pa.DataType) -> bool:
    if pa.types.is_struct(column_type):
        return any(f.name == "bytes" and _holds_bytes(f.type) for f in column_type)
    return bool(pa.types.is_binary(column_type) or pa.types.is_large_binary(column_type))


def _class_label(schema: pa.Schema, label: str | None) -> tuple[str, ...] | None:
    """Return the names of a Hugging Face ClassLabel from the file's metadata, or None if it has none."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return tuple(str(n) for n in features[label]["names"])
    except (KeyError, TypeError, ValueError, RecursionError):
        return None


def _paths(rows: list[_Row]) -> list[str]:
    """Return the paths of the pictures: as stored beside them if these are unique, else with the file's name before.

    If a path is missing, or paths repeat within a file, the paths are FILE/ROW.
    """
    for path in ([r.path for r in rows], [f"{r.file}/{r.path}" if r.path else None for r in rows]):
        if all(path) and len(set(path)) == len(path):
            return [str(p) for p in path]
    return [f"{r.file}/{r.row:06d}" for r in rows]


def _labels(rows: list[_Row], told: dict[str, tuple[str | None, tuple[str, ...] | None]]) -> list[ClassName | None]:
    """Return the class of each row. `told` has the name of each file's label column and the names of its classes."""
    of_file = {file: {row.label for row in part} - {None} for file, part in groupby(rows, key=attrgetter("file"))}
    known = set().union(*of_file.values())
    if all(isinstance(v, str) for v in known):
        of_name = class_names(known)
        return [None if row.label is None else of_name[row.label] for row in rows]
    if any(isinstance(v, str) for v in known):
        raise UsageError("labels are partly text and partly numbers: expected all text or all numbers")
    numbers: dict[tuple[str, Any], int] = {}  # the class number of each label in each file, unless it means no class
    for file, label in ((file, label) for file, labels in of_file.items() for label in sorted(labels)):
        number = class_number(label, f"{file}: column {told[file][0]!r}" if told[file][0] else file)
        if number is not None:
            numbers[file, label] = number
    numbered = {file for file, _ in numbers}
    names, positions = _merged({file: own for file, (_, own) in told.items() if own or file in numbered})
    synsets = class_names(names) if names else {}
    if not any(c.synset and c.label != c.synset for c in synsets.values()):
        synsets = {}  # plain names keep the class numbers of the column
    classes = {}
    for (file, label), number in numbers.items():
        own = positions[file]
        if own and number >= len(own):
            raise UsageError(f"{file}: label {number} is beyond the {len(own)} classes that the file's metadata names")
        index = own[number] if own else number
        plain = ClassName(index, names[index] if names else str(index), None)
        classes[file, label] = synsets.get(plain.label, plain)
    return [classes.get((row.file, row.label)) for row in rows]


def _merged(names: dict[str, tuple[str, ...] | None]) -> tuple[tuple[str, ...], dict[str, list[int]]]:
    """Return the class names of all files, and for each file the position of its own names among them.

    The first file gives the order; names that only later files have follow. A name that occurs twice in a file, as
    `crane` does in ImageNet, is two classes: the first one is the same as the first one of another file. Raises
    UsageError if only some of the files name their classes.
    """
    bare = [file for file, own in names.items() if not own]
    if not any(names.values()):
        return (), {file: [] for file in names}
    if bare:
        named = next(file for file, own in names.items() if own)
        raise UsageError(
            f"{bare[0]} numbers its classes without naming them, but {named} names them in its metadata, so that the "
            "numbers may mean other classes: write both with names or both without"
        )
    merged: dict[tuple[str, int], int] = {}
    positions: dict[str, list[int]] = {}
    for file, own in names.items():
        seen: Counter[str] = Counter()
        positions[file] = []
        for name in own or ():
            positions[file].append(merged.setdefault((name, seen[name]), len(merged)))
            seen[name] += 1
    return tuple(name for name, _ in merged), positions
