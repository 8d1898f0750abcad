"""HDF5 as the store writes it: once, fixed shapes, checksums always, nothing that names another file."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from store.errors import UsageError


@dataclass(frozen=True)
class Array:
    """One dataset to write. `compression`: None, "gzip" (level 1) or, for bytes that follow no pattern, "huffman": what
    the same gzip filter reads, without the search for repetitions, in a third less space and half the time."""

    data: NDArray[Any]
    chunks: tuple[int, ...] | None = None
    compression: str | None = None


def write(path: Path, arrays: Mapping[str, Array], attributes: Mapping[str, Any] | None = None) -> None:
    """Writes all arrays to a new file. The same arrays give the same bytes: no times, no names of machines."""
    with h5py.File(path, "w", libver="latest") as file:
        for key, value in sorted((attributes or {}).items()):
            file.attrs[key] = value
        for name, array in arrays.items():
            create(file, name, array)


def create(file: h5py.File, name: str, array: Array) -> None:
    data = np.ascontiguousarray(array.data)
    if data.size == 0:
        file.create_dataset(name, data=data, track_times=False)  # nothing to chunk, nothing to check
        return
    chunks = tuple(min(c, s) for c, s in zip(array.chunks or _default_chunks(data), data.shape, strict=True))
    options: dict[str, Any] = {"chunks": chunks, "fletcher32": True, "track_times": False}
    if array.compression:
        options |= {"compression": "gzip", "compression_opts": 1}
    if array.compression == "huffman":
        _write_chunks(file.create_dataset(name, data.shape, data.dtype, **options), data)
    else:
        file.create_dataset(name, data=data, **options)


def _write_chunks(dataset: h5py.Dataset, data: NDArray[Any]) -> None:
    """Writes each chunk as the dataset's filters would leave it: deflated, then its checksum."""
    shape = dataset.chunks
    for corner in itertools.product(*(range(0, size, step) for size, step in zip(data.shape, shape, strict=True))):
        part = data[tuple(slice(first, first + step) for first, step in zip(corner, shape, strict=True))]
        if part.shape != shape:  # a chunk at the end is whole in the file
            whole = np.zeros(shape, data.dtype)
            whole[tuple(slice(0, size) for size in part.shape)] = part
            part = whole
        packer = zlib.compressobj(1, zlib.DEFLATED, zlib.MAX_WBITS, zlib.DEF_MEM_LEVEL, zlib.Z_HUFFMAN_ONLY)
        packed = packer.compress(part.tobytes()) + packer.flush()
        dataset.id.write_direct_chunk(corner, packed + fletcher32(packed).to_bytes(4, "little"))


def fletcher32(data: bytes) -> int:
    """The checksum of HDF5's filter: Fletcher's over big-endian 16-bit words, an odd last byte high in a word."""
    words = np.frombuffer(data + b"\0" * (len(data) % 2), ">u2").astype(np.uint64)
    first = int(words.sum())
    second = int((words * np.arange(len(words), 0, -1, dtype=np.uint64)).sum())
    return _folded(second) << 16 | _folded(first)


def _folded(total: int) -> int:
    """Ones' complement sum of 16-bit words: 65535 stands for a multiple of itself, 0 only for nothing."""
    return (total - 1) % 0xFFFF + 1 if total else 0


def _default_chunks(data: NDArray[Any]) -> tuple[int, ...]:
    """About a mebibyte a chunk, whole rows."""
    row = max(data.nbytes // data.shape[0], 1)
    return (max((1 << 20) // row, 1), *data.shape[1:])


@contextmanager
def reading(path: Path) -> Iterator[h5py.File]:
    """Opens a file for reading without a lock; a damaged one is a UsageError."""
    with opened(path) as file:
        yield file


def opened(path: Path) -> h5py.File:
    """The same, for the caller to close."""
    try:
        return h5py.File(path, "r", locking=False)
    except OSError as error:
        raise UsageError(
            f"{path} cannot be opened as HDF5 ({error}): run `unitscope verify` and `unitscope repair`"
        ) from error


def dataset(file: h5py.File, name: str) -> h5py.Dataset:
    """A dataset whose bytes lie in this very file: external storage, virtual datasets and links are refused."""
    node: Any = file
    for part in name.strip("/").split("/"):
        link = node.get(part, getlink=True) if isinstance(node, h5py.Group) else None
        if not isinstance(link, h5py.HardLink):
            raise UsageError(f"{file.filename}: {name} is missing or is a link: the store holds only plain datasets")
        node = node[part]
    if not isinstance(node, h5py.Dataset) or node.external or node.is_virtual:
        raise UsageError(f"{file.filename}: {name} is no plain dataset: the store refuses external and virtual storage")
    return node


def datasets(file: h5py.File, group: str) -> list[str]:
    """Paths of the plain datasets in a group and the groups in it, sorted."""
    found: list[str] = []
    for name in sorted(file[group]):
        path = f"{group}/{name}"
        found += datasets(file, path) if isinstance(file[path], h5py.Group) else [path]
    return found


def read(path: Path, name: str) -> NDArray[Any]:
    with reading(path) as file:
        return np.asarray(dataset(file, name)[()])
