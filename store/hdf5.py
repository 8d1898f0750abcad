"""HDF5 as the store writes it: once, fixed shapes, checksums always, nothing that names another file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from .errors import UsageError


@dataclass(frozen=True)
class Array:
    """One dataset to write. `compression`: None or "gzip" (level 1)."""

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
    options: dict[str, Any] = {}
    if array.compression == "gzip":
        options = {"compression": "gzip", "compression_opts": 1}
    file.create_dataset(name, data=data, chunks=chunks, fletcher32=True, track_times=False, **options)


def _default_chunks(data: NDArray[Any]) -> tuple[int, ...]:
    """About a mebibyte a chunk, whole rows."""
    row = max(data.nbytes // data.shape[0], 1)
    return (max((1 << 20) // row, 1), *data.shape[1:])


@contextmanager
def reading(path: Path) -> Iterator[h5py.File]:
    """Opens a file for reading without a lock; a damaged one is a UsageError."""
    try:
        file = h5py.File(path, "r", locking=False)
    except OSError as error:
        raise UsageError(
            f"{path} cannot be opened as HDF5 ({error}): run `unitscope verify` and `unitscope repair`"
        ) from error
    with file:
        yield file


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


def read(path: Path, name: str) -> NDArray[Any]:
    with reading(path) as file:
        return np.asarray(dataset(file, name)[()])
