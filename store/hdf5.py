"""HDF5 as the store uses it: files written once, fixed shapes, checksums on all data, no reference to another file."""

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

from store.checked_file import CheckedFile
from store.errors import UsageError


@dataclass(frozen=True)
class Array:
    """One dataset to write.

    `compression` is None, "gzip" (level 1) or "huffman", which is for bytes without repeated patterns. HDF5's ordinary
    gzip filter reads both. "huffman" does not search for repetitions: on such bytes it takes a third less space and
    half the time.
    """

    data: NDArray[Any]
    chunks: tuple[int, ...] | None = None
    compression: str | None = None


def write(path: Path, arrays: Mapping[str, Array], attributes: Mapping[str, Any] | None = None) -> None:
    """Write all arrays to a new file, without a lock, which some network file systems do not have.

    The same arrays give the same bytes: the file holds no times and no machine names. Raises OSError if any write
    fails, also one that HDF5 puts off until the file is closed.
    """
    target = CheckedFile(path)
    try:
        write_to(target, arrays, attributes)
    except Exception:
        if target.failure is None:
            raise  # else HDF5 stumbled over what was not written, and close raises the reason
    finally:
        target.close()


def write_to(target: Any, arrays: Mapping[str, Array], attributes: Mapping[str, Any] | None = None) -> None:
    """Write all arrays to a path, or to an open file object, as `write` does but without looking at what has failed."""
    with h5py.File(target, "w", libver="latest") as file:
        for key, value in sorted((attributes or {}).items()):
            file.attrs[key] = value
        for name, array in arrays.items():
            create(file, name, array)


def create(file: h5py.File, name: str, array: Array) -> None:
    data = np.ascontiguousarray(array.data)
    if data.size == 0:
        file.create_dataset(name, data=data, track_times=False)  # an empty dataset takes no chunks and no checksum
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
    """Write each chunk as the dataset's filters would: deflated, then followed by its checksum."""
    shape = dataset.chunks
    for corner in itertools.product(*(range(0, size, step) for size, step in zip(data.shape, shape, strict=True))):
        part = data[tuple(slice(first, first + step) for first, step in zip(corner, shape, strict=True))]
        if part.shape != shape:  # HDF5 stores an edge chunk at full size
            whole = np.zeros(shape, data.dtype)
            whole[tuple(slice(0, size) for size in part.shape)] = part
            part = whole
        packer = zlib.compressobj(1, zlib.DEFLATED, zlib.MAX_WBITS, zlib.DEF_MEM_LEVEL, zlib.Z_HUFFMAN_ONLY)
        packed = packer.compress(part.tobytes()) + packer.flush()
        dataset.id.write_direct_chunk(corner, packed + fletcher32(packed).to_bytes(4, "little"))


def fletcher32(data: bytes) -> int:
    """Return the checksum of HDF5's Fletcher32 filter, computed over big-endian 16-bit words.

    An odd last byte is the high byte of a word.
    """
    words = np.frombuffer(data + b"\0" * (len(data) % 2), ">u2").astype(np.uint64)
    first = int(words.sum())
    second = int((words * np.arange(len(words), 0, -1, dtype=np.uint64)).sum())
    return _folded(second) << 16 | _folded(first)


def _folded(total: int) -> int:
    """Reduce a sum of 16-bit words modulo 65535. A multiple of 65535 gives 65535; only a sum of 0 gives 0."""
    return (total - 1) % 0xFFFF + 1 if total else 0


def _default_chunks(data: NDArray[Any]) -> tuple[int, ...]:
    """Return a chunk shape of whole rows, at most 1 MiB unless a single row is larger."""
    row = max(data.nbytes // data.shape[0], 1)
    return (max((1 << 20) // row, 1), *data.shape[1:])


# What h5py raises for bytes that make no sense: a checksum that differs, an object of another kind, an absurd size.
_DAMAGE = (OSError, RuntimeError, ValueError, KeyError, TypeError, OverflowError, MemoryError)


class Stored:
    """A dataset whose bytes are in its own file. Reading raises UsageError if a checksum differs."""

    def __init__(self, dataset: h5py.Dataset) -> None:
        self._dataset = dataset
        self.path, self.name = dataset.file.filename, dataset.name
        self.shape: tuple[int, ...] = dataset.shape
        self.dtype: np.dtype[Any] = dataset.dtype
        self.chunks: tuple[int, ...] | None = dataset.chunks
        self.compression: str | None = dataset.compression

    def expect(self, dtype: str, *shape: int | None) -> Stored:
        """Return this dataset. Raises UsageError if it has another dtype or another shape; None stands for any size."""
        sizes = len(shape) == len(self.shape) and all(b in (None, a) for a, b in zip(self.shape, shape, strict=True))
        if self.dtype != np.dtype(dtype) or not sizes:
            wanted = ", ".join("any" if size is None else str(size) for size in shape)
            raise _damaged(self.path, f"{self.name} is {self.dtype} {self.shape}, and {dtype} ({wanted}) is expected")
        return self

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> Any:
        try:
            return self._dataset[index]
        except (OSError, RuntimeError, OverflowError, MemoryError) as error:
            raise _damaged(self.path, f"{self.name} ({error})") from error


def _damaged(path: object, what: str) -> UsageError:
    return UsageError(f"{path} is damaged: {what}: run `unitscope verify` on its store, and `unitscope repair`")


@contextmanager
def reading(path: Path) -> Iterator[h5py.File]:
    """Open a file for reading, without a lock. Raises UsageError if the file is damaged."""
    with opened(path) as file:
        yield file


def opened(path: Path) -> h5py.File:
    """Open a file as `reading` does; the caller closes it."""
    try:
        return h5py.File(path, "r", locking=False)
    except _DAMAGE as error:
        raise _damaged(path, f"it cannot be opened as HDF5 ({error})") from error


def dataset(file: h5py.File, name: str) -> Stored:
    """Return a dataset whose bytes are in this file.

    Raises UsageError for external storage, virtual datasets and links, which could read other files, and if the file is
    damaged.
    """
    node: Any = file
    try:
        for part in name.strip("/").split("/"):
            link = node.get(part, getlink=True) if isinstance(node, h5py.Group) else None
            if not isinstance(link, h5py.HardLink):
                raise UsageError(
                    f"{file.filename}: {name} is missing or is a link: the store holds only plain datasets"
                )
            node = node[part]
        if isinstance(node, h5py.Dataset) and not node.external and not node.is_virtual:
            return Stored(node)
    except _DAMAGE as error:
        raise _damaged(file.filename, f"{name} ({error})") from error
    raise UsageError(f"{file.filename}: {name} is no plain dataset: the store refuses external and virtual storage")


def datasets(file: h5py.File, group: str) -> list[str]:
    """Return the paths of all datasets in a group and in its subgroups, sorted. Raises UsageError as `dataset` does.

    A group that is met again inside itself is refused: a hostile file can hold circles.
    """
    return _datasets(file, group, ())


def _datasets(file: h5py.File, group: str, above: tuple[Any, ...]) -> list[str]:
    paths: list[str] = []
    try:
        node = file[group or "/"]
        identity = h5py.h5o.get_info(node.id).addr
        if identity in above:
            raise UsageError(f"{file.filename}: {group} holds itself: the store holds only plain datasets")
        for name in sorted(node):
            path = f"{group}/{name}"
            if not isinstance(node.get(name, getlink=True), h5py.HardLink):
                raise UsageError(f"{file.filename}: {path} is a link: the store holds only plain datasets")
            inside = isinstance(node[name], h5py.Group)
            paths += _datasets(file, path, (*above, identity)) if inside else [path]
    except _DAMAGE as error:
        raise _damaged(file.filename, f"{group} ({error})") from error
    return paths


def read(path: Path, name: str) -> NDArray[Any]:
    with reading(path) as file:
        return np.asarray(dataset(file, name)[()])
