"""Sources whose pictures are in shard files, named by a pattern.

A pattern has `*` and `?`, or ranges in braces such as `train-{000..146}.tar`.
"""

from __future__ import annotations

import functools
import glob
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.data.source import Entry, Source, text_digest
from store.errors import UsageError

_BRACES = re.compile(r"\{([^{}]*)\}")


@dataclass(frozen=True)
class Shards:
    """The shard files of a source. `files` are sorted paths relative to `root`; `sizes` are in bytes."""

    root: str
    files: tuple[str, ...]
    sizes: tuple[int, ...]

    def path(self, file: str) -> Path:
        return Path(self.root) / file


class ShardedSource(Source):
    """A source whose pictures are in a few large files. `kind` is its prefix in the config, e.g. webdataset."""

    kind: str

    def __init__(self, text: str, pattern: str, name: str) -> None:
        self.text, self.name = text, name
        self._pattern = pattern

    @functools.cached_property
    def shards(self) -> Shards:
        return find_shards(self._pattern, self.kind)

    @property
    def root(self) -> str:  # type: ignore[override]
        return self.shards.root

    def listing(self, chosen: Callable[[], Sequence[Entry]]) -> str:
        """Return the SHA-256 of the shards' names and sizes, so that a worker need not read all shards again."""
        return text_digest(f"{f}\0{s}" for f, s in zip(self.shards.files, self.shards.sizes, strict=True))


def find_shards(pattern: str, kind: str) -> Shards:
    """Find the shard files that a pattern names.

    Raises UsageError if the pattern matches no file, if a shard that braces name does not exist, or for a URL or pipe.
    """
    if "://" in pattern or pattern.startswith("pipe:") or "|" in pattern:
        raise UsageError(
            f"dataset source {kind}:{pattern}: only files can be read, by place: copy the shards to a local disk"
        )
    root = os.path.dirname(re.split(r"[*?\[{]", pattern, maxsplit=1)[0])
    paths: set[str] = set()
    for expanded in expand_braces(pattern):
        matched = glob.glob(expanded, recursive=True)
        if not matched and pattern != expanded:
            raise UsageError(f"dataset source {kind}:{pattern}: {expanded} does not exist")
        paths |= {p for p in matched if os.path.isfile(p)}
    if not paths:
        raise UsageError(f"dataset source {kind}:{pattern} matches no file (relative paths count from {Path.cwd()})")
    files = tuple(sorted(os.path.relpath(p, root or ".").replace(os.sep, "/") for p in paths))
    return Shards(root, files, tuple((Path(root) / f).stat().st_size for f in files))


def expand_braces(pattern: str) -> list[str]:
    """Expand `a{00..02}b` and `{x,y}` as a shell does, and keep leading zeros."""
    match = _BRACES.search(pattern)
    if not match:
        return [pattern]
    ends = re.fullmatch(r"(\d+)\.\.(\d+)", match[1])
    if ends:
        width = len(ends[1]) if ends[1].startswith("0") or ends[2].startswith("0") else 0
        inside = [str(i).zfill(width) for i in range(int(ends[1]), int(ends[2]) + 1)]
    else:
        inside = match[1].split(",")
    return [full for i in inside for full in expand_braces(pattern[: match.start()] + i + pattern[match.end() :])]
