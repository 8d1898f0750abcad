"""The ordered index of a dataset: every file with its SHA-256, size, class, and whether its header can be read."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from pipeline.data.decode import BadImageError, read_size
from pipeline.data.source import Entry, Source
from store.errors import UsageError

_LEFT_OUT_SHOWN = 12  # kinds of files left out that are named


@dataclass(frozen=True)
class Indexed:
    entry: Entry
    sha256: str
    length: int
    size: tuple[int, int] | None  # width, height
    reason: str | None  # why it was rejected; None if it was not


def index_source(
    source: Source, entries: Sequence[Entry], threads: int, advance: Callable[[int], None] = lambda _: None
) -> list[Indexed]:
    """Read every picture once, in storage order, for its digest and for its size from the header.

    Returns one row per entry, in the order of the entries.
    """

    def one(entry: Entry) -> Indexed:
        try:
            data = source.read(entry)
        except OSError as error:
            return Indexed(entry, "", 0, None, f"cannot be read: {error.strerror}")
        digest = hashlib.sha256(data).hexdigest()
        try:
            return Indexed(entry, digest, len(data), read_size(data), None)
        except BadImageError as error:
            return Indexed(entry, digest, len(data), None, str(error))

    with ThreadPoolExecutor(threads) as pool:
        order = storage_order(entries)
        rows: dict[int, Indexed] = {}
        for position, row in zip(order, pool.map(one, (entries[position] for position in order)), strict=True):
            rows[position] = row
            advance(1)
        return [rows[position] for position in range(len(entries))]


def left_out_text(source: Source) -> str:
    """Return in one line what the listing of a source left out, most frequent first, or "" if it left out nothing."""
    counts = sorted((+source.left_out).items(), key=lambda item: (-item[1], item[0]))
    more = sum(count for _, count in counts[_LEFT_OUT_SHOWN:])
    shown = [f"{count} {kind}" for kind, count in counts[:_LEFT_OUT_SHOWN]] + [f"{more} of other kinds"] * (more > 0)
    return f"left out: {', '.join(shown)}" if shown else ""


def storage_order(entries: Sequence[Entry]) -> list[int]:
    """Return the positions of the entries sorted by shard and offset. Without shards, the order stays as it is."""
    return sorted(range(len(entries)), key=lambda i: (entries[i].source_file or "", entries[i].offset or 0))


def limited(entries: Sequence[Entry], limit: int, per_class: int) -> list[Entry]:
    """Keep the first `per_class` entries of each class, and then `limit` of all, spread evenly. 0 means no limit.

    Entries without a class are not limited by `per_class`.
    """
    if per_class:
        seen: dict[int | None, int] = {}
        kept = []
        for entry in entries:
            key = entry.label.index if entry.label else None
            seen[key] = seen.get(key, 0) + 1
            if key is None or seen[key] <= per_class:
                kept.append(entry)
        entries = kept
    if limit and limit < len(entries):
        entries = [entries[i * len(entries) // limit] for i in range(limit)]
    return list(entries)


def index_digest(rows: Sequence[Indexed]) -> str:
    """Return the SHA-256 over the ordered index: path, contents and class of every file."""
    sha = hashlib.sha256()
    for row in rows:
        sha.update(f"{row.entry.path}\0{row.sha256}\0{row.entry.label}\n".encode())
    return sha.hexdigest()


def images_columns(dataset: str, rows: Sequence[Indexed]) -> dict[str, object]:
    """Return the columns of the table `images`."""
    labels = [r.entry.label for r in rows]
    position = [0] * len(rows)
    for rank, image_id in enumerate(storage_order([r.entry for r in rows])):
        position[image_id] = rank
    return {
        "dataset": dataset,
        "image_id": list(range(len(rows))),
        "position": position,
        "path": [r.entry.path for r in rows],
        "label": [c.label if c else None for c in labels],
        "class_index": [c.index if c else None for c in labels],
        "synset": [c.synset if c else None for c in labels],
        "width": [r.size[0] if r.size else None for r in rows],
        "height": [r.size[1] if r.size else None for r in rows],
        "sha256": [r.sha256 for r in rows],
        "status": ["rejected" if r.reason else "accepted" for r in rows],
        "reason": [r.reason for r in rows],
        "source_file": [r.entry.source_file for r in rows],
        "offset": [r.entry.offset for r in rows],
        "length": [r.length for r in rows],
    }


def refuse_too_many(bad: Sequence[tuple[str, str]], total: int, most: float) -> None:
    """Raise UsageError, which lists bad pictures, if their share of `total` is more than `most`."""
    if len(bad) > most * total:
        shown = "; ".join(f"{path}: {reason}" for path, reason in bad[:10])
        more = f" and {len(bad) - 10} more" if len(bad) > 10 else ""
        raise UsageError(
            f"{len(bad)} of {total} pictures cannot be decoded, more than max_bad_fraction = {most:g} allows "
            f"(repair or remove them, or raise it in [dataset]): {shown}{more}"
        )
