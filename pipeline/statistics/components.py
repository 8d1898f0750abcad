"""Principal components of a layer's units: the few directions in which images differ most, to find similar images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.statistics.correlation import one_thread

COMPONENTS = 32


@dataclass(frozen=True)
class Components:
    """Principal components in z space, where z = (value - mean) / sd of each unit.

    directions: float32 [C, D], orthonormal. deviations: float32 [D], the standard deviations of the coordinates over
    images, in descending order.
    """

    directions: NDArray[np.float32]
    deviations: NDArray[np.float32]


def principal(matrix: NDArray[np.float64]) -> Components:
    """Return the leading eigenvectors of a correlation matrix [C, C], each with its largest entry positive."""
    with one_thread():
        values, vectors = (tensor.numpy() for tensor in torch.linalg.eigh(torch.from_numpy(matrix)))
    kept = slice(None, -1 - min(COMPONENTS, len(matrix)), -1)
    directions = vectors[:, kept]
    largest = np.abs(directions).argmax(0)
    directions = directions * np.sign(directions[largest, np.arange(directions.shape[1])])
    return Components(directions.astype(np.float32), np.sqrt(np.maximum(values[kept], 0)).astype(np.float32))


def coordinates(
    codes: NDArray[np.uint8], standard: NDArray[np.float32], components: Components
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Return the coordinates of images, int8 [n, D] in steps of 6/127 deviations, and their lengths, float32 [n].

    codes: uint8 [n, C]; standard: float32 [C, 256], the z that each code of a unit stands for. A length is the norm of
    the image's z over all units.
    """
    flat, first = standard.ravel(), np.arange(codes.shape[1], dtype=np.int32) * standard.shape[1]
    projections, lengths = [], []
    scale = np.divide(
        127 / 6, components.deviations, out=np.zeros_like(components.deviations), where=components.deviations > 1e-6
    )
    with one_thread():
        for start in range(0, len(codes), _ROWS):
            z = flat[codes[start : start + _ROWS] + first]
            projection = (torch.from_numpy(z) @ torch.from_numpy(components.directions)).numpy() * scale
            projections.append(np.clip(np.rint(projection), -127, 127).astype(np.int8))
            lengths.append(np.linalg.norm(z, axis=1))
    return np.concatenate(projections), np.concatenate(lengths).astype(np.float32)


_ROWS = 4096  # images per step: fixed, so that the order of additions is fixed too
