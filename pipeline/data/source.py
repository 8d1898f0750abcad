"""What a source of pictures is: entries in order, and the bytes of one."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from pipeline.data.imagenet import SYNSET, imagenet_labels, imagenet_synsets


@dataclass(frozen=True, slots=True)
class ClassName:
    index: int
    label: str
    synset: str | None


@dataclass(frozen=True, slots=True)
class Entry:
    """One picture: its path relative to the source's root, its class where the layout tells one, and where it lies
    in a shard: a byte offset in a tar, a row in a Parquet file."""

    path: str
    label: ClassName | None
    source_file: str | None = None
    offset: int | None = None
    length: int | None = None  # bytes, where the source tells without reading


class Source(ABC):
    """Pictures in some place. `root` is as the config gave it; paths and shards are relative to it."""

    text: str  # as in the config
    name: str  # of the dataset, a slug
    root: str

    @property
    @abstractmethod
    def entries(self) -> tuple[Entry, ...]:
        """Sorted by class, then path; read once."""

    @abstractmethod
    def read(self, entry: Entry) -> bytes:
        """The bytes of one picture; from any thread. Raises OSError."""

    def listing(self, chosen: Callable[[], Sequence[Entry]]) -> str:
        """SHA-256 of what can be compared without reading pictures: an index made from another listing is refused.

        `chosen` gives the entries that the config's limits leave."""
        return text_digest(f"{entry.path}\0{entry.label}" for entry in chosen())


def text_digest(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def in_order_of_class(entries: Iterable[Entry]) -> tuple[Entry, ...]:
    return tuple(sorted(entries, key=lambda e: (e.label.index if e.label else 1 << 31, e.path)))


def class_names(names: Iterable[str]) -> dict[str, ClassName]:
    """Classes of folder or label names: ImageNet synsets get their standard index, other names their rank."""
    ordered = sorted(set(names))
    if ordered and all(SYNSET.fullmatch(f) for f in ordered):
        synsets = {s: i for i, s in enumerate(imagenet_synsets())}
        if all(f in synsets for f in ordered):
            return {f: ClassName(synsets[f], imagenet_labels()[synsets[f]], f) for f in ordered}
    return {f: ClassName(i, f, f if SYNSET.fullmatch(f) else None) for i, f in enumerate(ordered)}
