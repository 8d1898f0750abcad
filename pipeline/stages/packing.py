"""Columns of a partial, packed: bytes shuffled, zstd, in blocks of channels so that a block is read alone.

HDF5's own fast filter, LZF, gives different bytes for the same array (its hash table is not cleared); zstd does not.
"""

from __future__ import annotations

import h5py
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from store import hdf5
from store.hdf5 import Array

BLOCK = 64  # channels
LEVEL = 1


def packed(name: str, data: NDArray[np.generic]) -> dict[str, Array]:
    """[n, C] of a fixed-width type -> the datasets that hold it."""
    codec = pa.Codec("zstd", compression_level=LEVEL)
    size = data.dtype.itemsize
    blobs = []
    for first in range(0, data.shape[1], BLOCK):
        block = np.ascontiguousarray(data[:, first : first + BLOCK])
        shuffled = np.ascontiguousarray(block.view(np.uint8).reshape(-1, size).T)
        blobs.append(codec.compress(shuffled.tobytes(), asbytes=True))
    offsets = np.cumsum([0, *(len(b) for b in blobs)]).astype(np.int64)
    kind = np.frombuffer(data.dtype.str.encode(), np.uint8)
    return {
        f"{name}/bytes": Array(np.frombuffer(b"".join(blobs), np.uint8), (1 << 20,)),
        f"{name}/offsets": Array(offsets),
        f"{name}/shape": Array(np.array(data.shape, np.int64)),
        f"{name}/dtype": Array(kind),
    }


def unpacked(file: h5py.File, name: str, channels: slice) -> NDArray[np.generic]:
    """Some channels of a packed column: [n, channels]."""
    codec = pa.Codec("zstd", compression_level=LEVEL)
    rows, width = (int(s) for s in hdf5.dataset(file, f"{name}/shape")[()])
    dtype = np.dtype(hdf5.dataset(file, f"{name}/dtype")[()].tobytes().decode())
    offsets = hdf5.dataset(file, f"{name}/offsets")[()]
    first, last, _ = channels.indices(width)
    pieces = []
    for block in range(first // BLOCK, -(-last // BLOCK)):
        columns = min(BLOCK, width - block * BLOCK)
        blob = hdf5.dataset(file, f"{name}/bytes")[offsets[block] : offsets[block + 1]].tobytes()
        plain = codec.decompress(blob, rows * columns * dtype.itemsize, asbytes=True)
        shuffled = np.frombuffer(plain, np.uint8).reshape(dtype.itemsize, -1)
        pieces.append(np.ascontiguousarray(shuffled.T).view(dtype).reshape(rows, columns))
    start = first - first // BLOCK * BLOCK
    return np.concatenate(pieces, axis=1)[:, start : start + last - first]
