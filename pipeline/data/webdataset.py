"""The source `webdataset:PATTERN`: uncompressed tar shards, read at the offsets in the index and never extracted.

The class of a picture is in a `.cls` file (a number), in a `.json` file (`class_index`, `cls` or `label`; `synset` or
`wnid`), or it is the first folder of its path. `tar_samples` says which of these files belong to which picture.
"""

from __future__ import annotations

import functools
import json
import os
import re
import weakref
from pathlib import Path

from pipeline.data.decode import SUFFIXES
from pipeline.data.shard_files import ShardedSource
from pipeline.data.source import ClassName, Entry, class_names, class_number, in_order_of_class, require_utf8
from pipeline.data.tar_members import tar_members
from pipeline.data.tar_samples import Facts, paired, stem_of
from store.errors import UsageError

_OTHER_PICTURES = (  # suffixes of pictures in formats that are not read
    ".avif", ".heic", ".heif", ".hif", ".jp2", ".j2k", ".jpx", ".jpf", ".jxl", ".jxr", ".svg", ".psd", ".tga", ".exr",
    ".hdr", ".pbm", ".pnm", ".pfm", ".ico", ".cr2", ".cr3", ".nef", ".arw", ".dng", ".raf", ".orf", ".rw2",
)  # fmt: skip


class _Opened:
    """A file that is open for reading until nobody refers to it."""

    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self.descriptor)


class WebDatasetSource(ShardedSource):
    kind = "webdataset"

    @functools.cached_property
    def entries(self) -> tuple[Entry, ...]:
        samples = [sample for file in self.shards.files for sample in self._samples(file)]
        entries = _classified(samples)
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

    def _samples(self, file: str) -> list[tuple[Entry, Facts]]:
        """Return the pictures of a shard, without their classes, and what the shard tells of each."""
        pictures: list[Entry] = []
        facts: dict[str, Facts] = {}
        for member in tar_members(self.shards.path(file), self.left_out):
            lower = member.name.rpartition("/")[2].lower()
            picture = Entry(member.name, None, file, member.offset, member.size)
            if lower.startswith("."):
                if lower.endswith(SUFFIXES):
                    self.left_out["hidden picture(s)"] += 1
            elif lower.endswith(SUFFIXES):
                require_utf8(member.name, file)
                pictures.append(picture)
            elif lower.endswith(".cls"):
                _take_number(
                    facts.setdefault(stem_of(member.name), Facts()), self.read(picture), f"{file}: {member.name}"
                )
            elif lower.endswith(".json"):
                _take_json(
                    facts.setdefault(stem_of(member.name), Facts()), self.read(picture), f"{file}: {member.name}"
                )
            elif lower.endswith(_OTHER_PICTURES):
                self.left_out[os.path.splitext(lower)[1]] += 1
        return paired(file, pictures, facts, self.left_out)


_WHOLE = re.compile(r"[+-]?[0-9]+(\.0*)?")


def _number(text: str) -> int | str:
    """Return the whole number that a text holds, such as `7` or `7.0`, or else the text itself."""
    return int(text.partition(".")[0]) if _WHOLE.fullmatch(text) else text


_NAMING = ("synset", "wnid", "label", "cls", "class_index")  # keys of JSON that tell a class


def _take_number(facts: Facts, data: bytes, where: str) -> None:
    facts.cls = class_number(_number(data.decode(errors="replace").strip()[:40]), where)
    facts.numbered = True


def _take_json(facts: Facts, data: bytes, where: str) -> None:
    try:
        told = json.loads(data)
        for name in _NAMING if isinstance(told, dict) else ():
            str(told.get(name, "")).encode()  # "\\ud800" is JSON, and no text that could be stored
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{where} is no JSON: {error}") from error
    facts.json, facts.json_file = told if isinstance(told, dict) else {}, where


def _classified(samples: list[tuple[Entry, Facts]]) -> list[Entry]:
    """Return entries with their classes, told by numbers if there are any, else by names in JSON, else by folders."""
    keys = [_key(picture, facts) for picture, facts in samples]
    names = class_names(k for k in keys if isinstance(k, str))
    entries = []
    for (picture, _), key in zip(samples, keys, strict=True):
        label = key if isinstance(key, ClassName) else names[key] if key is not None else None
        entries.append(Entry(picture.path, label, picture.source_file, picture.offset, picture.length))
    return entries


def _key(picture: Entry, facts: Facts) -> ClassName | str | None:
    """Return the class of a picture if it has a number, else the name of its class, or None if it has no class.

    The name is a synset or label in its JSON, or its first folder.
    """
    told = facts.json
    synset = next((v for k in ("synset", "wnid") if isinstance(v := told.get(k), str)), None)
    label = next((t for k in ("label", "cls") if isinstance(t := _told(facts, k), str)), None)
    number = next((n for k in ("class_index", "cls", "label") if isinstance(n := _told(facts, k), (int, float))), None)
    if number is not None or facts.numbered:
        number = facts.cls if number is None else class_number(number, f"the JSON of {picture.path}")
        return None if number is None else ClassName(number, str(label or number), synset)
    if synset or label:
        return str(synset or label)
    for name in ("cls", "label"):
        if told.get(name) is not None:  # it is neither a number nor text
            class_number(told[name], f"{facts.json_file}: {name}")
    if told.get("class_index", 0) is None:  # the JSON says that it has no class
        return None
    folder, _, rest = picture.path.partition("/")
    return folder if rest else None


def _told(facts: Facts, name: str) -> object:
    """Return what the JSON tells as its field `name`. A number may be written as text in `cls`, as in a `.cls` file."""
    value = facts.json.get(name)
    if name == "class_index" and value is not None:
        class_number(value, f"{facts.json_file}: {name}")  # text and lists must not pass as if nothing were told
    return _number(value.strip()) if name == "cls" and isinstance(value, str) else value


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
