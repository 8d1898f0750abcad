"""The interface of a source of pictures: entries in order, and the bytes of each."""

from __future__ import annotations

import functools
import hashlib
import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from pipeline.data.imagenet import SYNSET, imagenet_labels, imagenet_synsets
from store.errors import UsageError


@dataclass(frozen=True, slots=True)
class ClassName:
    index: int
    label: str
    synset: str | None


@dataclass(frozen=True, slots=True)
class Entry:
    """One picture: its path relative to the source's root, its class if the source tells it, and its position.

    `source_file` is the shard that holds it, if any. `offset` is its byte offset in a tar or its row in a Parquet file.
    """

    path: str
    label: ClassName | None
    source_file: str | None = None
    offset: int | None = None
    length: int | None = None  # bytes; None if the source would have to read the picture to tell


class Source(ABC):
    """A source of pictures. `root` is as the config gave it; paths and shards are relative to it."""

    text: str  # the source as written in the config
    name: str  # the dataset's name, a slug
    root: str

    @property
    @abstractmethod
    def entries(self) -> tuple[Entry, ...]:
        """All pictures, sorted by class and then by path. They are listed once and kept."""

    @abstractmethod
    def read(self, entry: Entry) -> bytes:
        """Read the bytes of one picture. Any thread may call it. Raises OSError."""

    @functools.cached_property
    def left_out(self) -> Counter[str]:
        """What listing `entries` left out: how often each kind of file, such as `.avif` or `symbolic link(s)`."""
        return Counter()

    def listing(self, chosen: Callable[[], Sequence[Entry]]) -> str:
        """Return a SHA-256 over what can be listed without reading pictures.

        It tells whether an existing index was made from the same listing; otherwise the index is refused. `chosen`
        returns the entries that remain after the config's limits.
        """
        return text_digest(f"{entry.path}\0{entry.label}" for entry in chosen())


def text_digest(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def require_utf8(name: str, where: str) -> None:
    """Raise UsageError if a file name holds bytes that are not UTF-8, since it could not be stored as text."""
    try:
        name.encode()
    except UnicodeEncodeError:
        raise UsageError(f"{where}: file name {os.fsencode(name)!r} is not UTF-8: rename it") from None


def in_order_of_class(entries: Iterable[Entry]) -> tuple[Entry, ...]:
    return tuple(sorted(entries, key=lambda e: (e.label.index if e.label else 1 << 31, e.path)))


MOST_CLASS = 2**31 - 1  # class numbers are stored as int32


def class_number(value: object, where: str) -> int | None:
    """Return the number of a class as any source tells it, or None for -1, which means no class.

    Whole floats count, as tables with missing values hold them. Raises UsageError, which names the place `where`, for
    anything else: text, bools, fractions, other negative numbers and numbers beyond int32.
    """
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if is_number and -1 <= value <= MOST_CLASS and value == int(value):  # type: ignore[operator,call-overload]
        return int(value) if value != -1 else None  # type: ignore[call-overload]
    shown = repr(value) if len(repr(value)) <= 60 else f"{repr(value)[:60]}..."
    kind = "" if is_number or isinstance(value, str) else f" of type {type(value).__name__}"
    raise UsageError(
        f"{where}: class {shown}{kind}: expected a whole number from 0 to {MOST_CLASS}, or -1 for no class"
    )


def class_names(names: Iterable[str]) -> dict[str, ClassName]:
    """Return the classes of folder or label names.

    If all names are ImageNet synsets, they get their standard index. Otherwise each gets its rank among sorted names.
    """
    ordered = sorted(set(names))
    if ordered and all(SYNSET.fullmatch(f) for f in ordered):
        synsets = {s: i for i, s in enumerate(imagenet_synsets())}
        if all(f in synsets for f in ordered):
            return {f: ClassName(synsets[f], imagenet_labels()[synsets[f]], f) for f in ordered}
    return {f: ClassName(i, f, f if SYNSET.fullmatch(f) else None) for i, f in enumerate(ordered)}
