"""The statistics of one batch of pictures, for every unit, and the buffers that reducers write them to."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.graph import Layer
from store.errors import UsageError


@dataclass(frozen=True)
class BatchStatistics:
    """Per image and unit, [images, units]; units in the order of (layer, channel).

    max, mean, min: float32; argmax, argmin: int32, row * width + column of the first extreme (argmin: 0 where the layer
    cannot be negative); sum, square: float64 sums of values and their squares over positions; active: int32 positions
    above zero.
    """

    max: NDArray[np.float32]
    argmax: NDArray[np.int32]
    mean: NDArray[np.float32]
    min: NDArray[np.float32]
    argmin: NDArray[np.int32]
    sum: NDArray[np.float64]
    square: NDArray[np.float64]
    active: NDArray[np.int32]
    logits: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class Buffers:
    """Where the reducers write, on the network's device: the tensors [images, units] of
    `BatchStatistics`, without mean.

    One transfer a batch, not one a layer, so that a GPU is never waited for inside the pass.
    """

    max: Tensor
    argmax: Tensor
    min: Tensor
    argmin: Tensor
    sum: Tensor
    square: Tensor
    active: Tensor

    @functools.cached_property
    def arrays(self) -> tuple[NDArray[Any], ...]:
        """The tensors of a CPU in the order above, in the same memory: many times cheaper to cut."""
        return tuple(getattr(self, f.name).numpy() for f in fields(self))

    def rows(self, first: int, last: int) -> Buffers:
        """Those of some images, in the same memory."""
        return Buffers(*(getattr(self, f.name)[first:last] for f in fields(self)))

    def measured(self, positions: NDArray[np.float64]) -> BatchStatistics:
        """On the CPU (the same memory, where they are there); `positions`: that each unit's sums run over."""
        found = {f.name: getattr(self, f.name).cpu().numpy() for f in fields(self)}
        return BatchStatistics(mean=(found["sum"] / positions).astype(np.float32), **found)


def empty(images: int, units: int, device: torch.device | str = "cpu") -> Buffers:
    def new(dtype: torch.dtype) -> Tensor:
        return torch.empty((images, units), dtype=dtype, device=device)

    argmin = torch.zeros((images, units), dtype=torch.int32, device=device)
    return Buffers(
        new(torch.float32), new(torch.int32), new(torch.float32), argmin, new(torch.float64), new(torch.float64),
        new(torch.int32),
    )  # fmt: skip


@dataclass(frozen=True)
class UnitIndex:
    """The units of some layers in the store's order: (layer, channel)."""

    layers: tuple[Layer, ...]

    @property
    def offsets(self) -> NDArray[np.int64]:
        """Where each layer's units begin, and the total: int64 [layers + 1]."""
        return np.cumsum([0, *(layer.channels for layer in self.layers)]).astype(np.int64)

    def slice(self, place: int) -> slice:
        offsets = self.offsets
        return slice(int(offsets[place]), int(offsets[place + 1]))

    def name(self, unit: int) -> str:
        place = int(np.searchsorted(self.offsets, unit, side="right")) - 1
        return f"{self.layers[place].name}:{unit - int(self.offsets[place])}"


def check_finite(out: BatchStatistics, images: int, names: Callable[[int], str]) -> None:
    """A NaN or an infinity anywhere reaches the sums. Raises UsageError that names the first unit."""
    bad = ~np.isfinite(out.square[:images])
    if bad.any():
        image, unit = (int(i) for i in np.argwhere(bad)[0])
        raise UsageError(
            f"unit {names(unit)} is not finite on picture {image} of its batch ({int(bad.any(0).sum())} units in all): "
            "check the weights and the preprocessing; a precision narrower than float32 can overflow"
        )
