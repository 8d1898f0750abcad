"""Principal components of a layer's units: the few directions in which images differ most, to find like images by."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.statistics.correlation import one_thread

COMPONENTS = 32


@dataclass(frozen=True)
class Components:
    """`directions` float32 [C, D], orthonormal, in z space: z = (value - mean) / sd of each unit. `deviations` float32
    [D]: standard deviation of the coordinates over images, falling."""

    directions: NDArray[np.float32]
    deviations: NDArray[np.float32]


def principal(matrix: NDArray[np.float64]) -> Components:
    """The leading eigenvectors of a correlation matrix [C, C], each with its largest entry positive."""
    with one_thread():
        values, vectors = (found.numpy() for found in torch.linalg.eigh(torch.from_numpy(matrix)))
    kept = slice(None, -1 - min(COMPONENTS, len(matrix)), -1)
    directions = vectors[:, kept]
    largest = np.abs(directions).argmax(0)
    directions = directions * np.sign(directions[largest, np.arange(directions.shape[1])])
    return Components(directions.astype(np.float32), np.sqrt(np.maximum(values[kept], 0)).astype(np.float32))


def coordinates(
    codes: NDArray[np.uint8], standard: NDArray[np.float32], found: Components
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Where images lie: int8 [n, D] in steps of 6/127 deviations, and their length in z space, float32 [n].

    codes: uint8 [n, C]; standard: float32 [C, 256], the z that each unit's code stands for.
    """
    flat, first = standard.ravel(), np.arange(codes.shape[1], dtype=np.int32) * standard.shape[1]
    places, lengths = [], []
    scale = np.divide(127 / 6, found.deviations, out=np.zeros_like(found.deviations), where=found.deviations > 1e-6)
    with one_thread():
        for start in range(0, len(codes), _ROWS):
            z = flat[codes[start : start + _ROWS] + first]
            place = (torch.from_numpy(z) @ torch.from_numpy(found.directions)).numpy() * scale
            places.append(np.clip(np.rint(place), -127, 127).astype(np.int8))
            lengths.append(np.linalg.norm(z, axis=1))
    return np.concatenate(places), np.concatenate(lengths).astype(np.float32)


_ROWS = 4096  # images a step: fixed, so that the order of additions is
