"""Decode and resize pictures once, for many models to scan: write them to tar shards that `webdataset:` reads."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from pipeline.config import Config
from pipeline.data.decode import BadImageError, is_plain_jpeg, open_image
from pipeline.data.indexing import limited, refuse_too_many, storage_order
from pipeline.data.source import Entry, Source
from pipeline.data.sources import open_source
from pipeline.runtime.devices import threads_of_worker
from pipeline.runtime.ordered_map import ordered_map
from store import housekeeping, publish
from store.errors import UsageError

SUFFIX = {"jpeg": ".jpg", "raw": ".ppm"}
SETTINGS = "pack.json"


@dataclass(frozen=True)
class Packing:
    """How pictures are packed.

    `format` is "jpeg", or "raw" for uint8 pixels (PPM), which need no decoding but some eight times the bytes. `size`
    is the short side in pixels; smaller pictures are not enlarged. `quality` is that of JPEG. `shard_size` is the
    number of pictures per shard.
    """

    format: str = "jpeg"
    size: int = 256
    quality: int = 95
    shard_size: int = 1000


@dataclass(frozen=True)
class Packed:
    """What a packing holds: numbers of pictures, shards and bytes, and the pictures that were left out."""

    pictures: int
    shards: int
    bytes: int
    bad: tuple[tuple[str, str], ...]  # (path, reason) of each picture that was left out


def pack(config: Config, folder: Path, packing: Packing, progress: bool = True) -> Packed:
    """Pack a config's pictures into `folder`. Existing shards are kept, so that it can be run again.

    Raises UsageError if the folder holds something else, or if too many pictures cannot be decoded.
    """
    source = open_source(config.dataset.source, config.dataset.name)
    entries = limited(source.entries, config.dataset.limit, config.dataset.limit_per_class)
    entries = [entries[i] for i in storage_order(entries)]
    listing = source.listing(lambda: entries)
    _begin(folder, {"pictures": len(entries), "listing": listing} | asdict(packing))
    names = _names(entries, SUFFIX[packing.format])
    bad: list[tuple[str, str]] = []
    threads = threads_of_worker(config.compute.threads, 1)
    total = 0
    cuts = range(0, len(entries), packing.shard_size)
    with tqdm(desc="pack", total=len(entries), unit="img", disable=not progress) as bar:
        for number, first in enumerate(cuts):
            part = slice(first, first + packing.shard_size)
            path = folder / f"{number:06d}.tar"
            if not path.exists():
                made = _packed(source, entries[part], packing, threads, bar.update)
                with publish.whole_file(path) as temporary:
                    bad += _write(temporary, made, entries[part], names[part])
            else:
                bad += _left_out(path, entries[part], names[part])
                bar.update(len(entries[part]))
            total += path.stat().st_size
    refuse_too_many(bad, len(entries), config.dataset.max_bad_fraction)
    return Packed(len(entries) - len(bad), len(cuts), total, tuple(bad))


def _begin(folder: Path, settings: dict[str, object]) -> None:
    """Make the folder and write the settings to it. Raises UsageError if it holds anything else."""
    folder.mkdir(parents=True, exist_ok=True)
    housekeeping.remove_stale_temporaries(folder)
    text = json.dumps(settings, sort_keys=True, indent=1) + "\n"
    path = folder / SETTINGS
    if not path.exists():
        if any(not p.name.startswith(".") for p in folder.iterdir()):
            raise UsageError(f"{folder} holds other files: choose a new or empty folder")
        publish.replace_text(path, text)
    elif path.read_text() != text:
        raise UsageError(f"{folder} holds pictures of another source or with other settings: choose another")


def _packed(
    source: Source, entries: list[Entry], packing: Packing, threads: int, advance: Callable[[int], object]
) -> Iterator[bytes | BadImageError]:
    """Yield each picture packed, or the error why it cannot be."""

    def one(entry: Entry) -> bytes | BadImageError:
        try:
            return packed_picture(source.read(entry), packing)
        except BadImageError as error:
            return error
        except OSError as error:
            return BadImageError(f"cannot be read: {error.strerror}")

    for picture in ordered_map(one, entries, threads):
        advance(1)
        yield picture


def packed_picture(data: bytes, packing: Packing) -> bytes:
    """Return a picture, encoded, as upright RGB with a short side of at most `size`.

    If the format is "jpeg", a JPEG that already is so is kept byte for byte. Raises BadImageError.
    """
    image = open_image(data)
    short = min(image.size)
    if short <= packing.size and packing.format == "jpeg" and is_plain_jpeg(data):
        return data
    if short > packing.size:
        # rounds the long side as torchvision and Preprocess do, so that a scan need not resize again
        width, height = (packing.size if side == short else int(packing.size * side / short) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    if packing.format == "raw":
        image.save(buffer, "PPM")
    else:
        image.save(buffer, "JPEG", quality=packing.quality, subsampling=0)
    return buffer.getvalue()


def _names(entries: list[Entry], suffix: str) -> list[str]:
    """Return a name in the tar for each picture: its path with another suffix, and unique.

    Its base name has no other dot, since webdataset ends the key of a sample at the first dot.
    """
    names: list[str] = []
    seen: set[str] = set()
    for entry in entries:
        folder, _, base = entry.path.rpartition("/")
        stem = os.path.splitext(base)[0].replace(".", "_")
        name = stem
        extra = 1
        while (full := f"{folder}/{name}" if folder else name) in seen:
            extra += 1
            name = f"{stem}_{extra}"
        seen.add(full)
        names.append(full + suffix)
    return names


def _write(
    path: Path, made: Iterator[bytes | BadImageError], entries: list[Entry], names: list[str]
) -> list[tuple[str, str]]:
    """Write one shard: each picture and a JSON file with its class. Return those that could not be decoded."""
    bad = []
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for data, entry, name in zip(made, entries, names, strict=True):
            if isinstance(data, BadImageError):
                bad.append((entry.path, str(data)))
                continue
            _add(tar, name, data)
            c = entry.label
            facts = {"class_index": c.index, "label": c.label, "synset": c.synset} if c else {"class_index": None}
            _add(tar, os.path.splitext(name)[0] + ".json", json.dumps(facts, sort_keys=True).encode())
    return bad


def _left_out(path: Path, entries: list[Entry], names: list[str]) -> list[tuple[str, str]]:
    """Return the pictures that an earlier call could not decode: those that a finished shard lacks."""
    with tarfile.open(path, "r:") as tar:
        there = set(tar.getnames())
    return [(e.path, "left out before") for e, name in zip(entries, names, strict=True) if name not in there]


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))
