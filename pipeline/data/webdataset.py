"""The source `webdataset:PATTERN`: uncompressed tar shards, read at the offsets in the index and never extracted.

The files of a sample share their folder and their file name up to its first dot. The class of a sample is in a `.cls`
file (a number), in a `.json` file (`class_index`, `cls` or `label`; `synset` or `wnid`), or it is the first folder of
its path.
"""

from __future__ import annotations

import functools
import json
import os
import re
import tarfile
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.data.decode import SUFFIXES
from pipeline.data.shard_files import ShardedSource
from pipeline.data.source import ClassName, Entry, class_names, class_number, in_order_of_class
from store.errors import UsageError

_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


@dataclass
class _Sample:
    pictures: list[Entry] = field(default_factory=list)
    cls: int | None = None
    numbered: bool = False  # whether a .cls file told its class, or that it has none
    facts: dict[str, object] = field(default_factory=dict)


class _Opened:
    """A file that is open for reading until nobody refers to it."""

    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self.descriptor)


class WebDatasetSource(ShardedSource):
    kind = "webdataset"

    @functools.cached_property
    def entries(self) -> tuple[Entry, ...]:
        samples = [sample for file in self.shards.files for sample in self._samples(file).values()]
        entries = _classified([s for s in samples if s.pictures])
        if not entries:
            raise UsageError(f"dataset source {self.text} holds no pictures ({', '.join(SUFFIXES)})")
        return in_order_of_class(_distinct(entries))

    def read(self, entry: Entry) -> bytes:
        if entry.source_file is None or entry.offset is None or entry.length is None:
            raise ValueError(f"{entry.path}: an entry of a tar must have a file, an offset and a length")
        file = self._file(entry.source_file)  # this reference keeps it open even if the cache drops it
        data = os.pread(file.descriptor, entry.length, entry.offset)
        if len(data) < entry.length:
            raise OSError(5, f"{entry.source_file} ends before the picture does")
        return data

    @functools.lru_cache(64)  # noqa: B019  (a source lives as long as its process)
    def _file(self, file: str) -> _Opened:
        return _Opened(self.shards.path(file))

    def _samples(self, file: str) -> dict[str, _Sample]:
        path = self.shards.path(file)
        with path.open("rb") as raw:
            head = raw.read(6)
        for magic, compression in _COMPRESSED.items():
            if head.startswith(magic):
                raise UsageError(
                    f"{path} is compressed ({compression}), but pictures are read at their offsets, which only a plain "
                    "tar has: write the shards as plain tar (pictures hardly compress)"
                )
        samples: dict[str, _Sample] = {}
        try:
            with tarfile.open(path, "r:") as tar:
                for member in tar:
                    if member.isreg() and not member.issparse():
                        _take(samples, file, member, functools.partial(_body, tar, member))
        except (tarfile.TarError, OSError, EOFError) as error:
            raise UsageError(f"{path} is no whole tar file: {error}") from error
        return samples


def _take(samples: dict[str, _Sample], file: str, member: tarfile.TarInfo, body: Callable[[], bytes]) -> None:
    name = member.name.removeprefix("./")
    folder, _, base = name.rpartition("/")
    if base.startswith("."):
        return
    sample = samples.setdefault(f"{folder}/{base.partition('.')[0]}", _Sample())
    lower = base.lower()
    if lower.endswith(SUFFIXES):
        sample.pictures.append(Entry(name, None, file, member.offset_data, member.size))
    elif lower.endswith(".cls"):
        text = body().decode(errors="replace").strip()[:40]
        where = f"{file}: {name}"
        sample.cls = class_number(int(text) if re.fullmatch(r"[+-]?[0-9]+", text) else text, where)
        sample.numbered = True
    elif lower.endswith(".json"):
        try:
            facts = json.loads(body())
        except ValueError as error:
            raise UsageError(f"{file}: {name} is no JSON: {error}") from error
        sample.facts = facts if isinstance(facts, dict) else {}


def _body(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    return file.read() if file else b""


def _classified(samples: list[_Sample]) -> list[Entry]:
    """Return entries with their classes, told by numbers if there are any, else by names in JSON, else by folders."""
    keys = [_key(sample) for sample in samples]
    names = class_names(k for k in keys if isinstance(k, str))
    entries = []
    for sample, key in zip(samples, keys, strict=True):
        label = key if isinstance(key, ClassName) else names[key] if key is not None else None
        entries += [Entry(p.path, label, p.source_file, p.offset, p.length) for p in sample.pictures]
    return entries


def _key(sample: _Sample) -> ClassName | str | None:
    """Return the class of a sample if it has a number, else the name of its class, or None if it has no class.

    The name is a synset or label in its JSON, or its first folder.
    """
    facts = sample.facts
    synset = next((str(facts[k]) for k in ("synset", "wnid") if isinstance(facts.get(k), str)), None)
    told = next((facts[k] for k in ("class_index", "cls", "label") if isinstance(facts.get(k), (int, float))), None)
    label = facts.get("label") if isinstance(facts.get("label"), str) else None
    if told is not None or sample.numbered:
        number = sample.cls if told is None else class_number(told, f"the JSON of {sample.pictures[0].path}")
        return None if number is None else ClassName(number, str(label or number), synset)
    if synset or label:
        return str(synset or label)
    if facts.get("class_index", 0) is None:  # the JSON says that it has no class
        return None
    folder, _, rest = sample.pictures[0].path.partition("/")
    return folder if rest else None


def _distinct(entries: list[Entry]) -> list[Entry]:
    """Return the entries; if paths repeat between shards, put the shard's name before every path.

    Raises UsageError if one shard holds two pictures with the same path.
    """
    if len({e.path for e in entries}) == len(entries):
        return entries
    renamed = [Entry(f"{e.source_file}/{e.path}", e.label, e.source_file, e.offset, e.length) for e in entries]
    seen: set[str] = set()
    for entry in renamed:
        if entry.path in seen:
            raise UsageError(f"{entry.source_file} holds two pictures of the same name: {entry.path}")
        seen.add(entry.path)
    return renamed
