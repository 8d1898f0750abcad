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
    """Statistics per image and unit, as arrays [images, units]; units are in the order (layer, channel).

    max, mean, min: float32.
    argmax, argmin: int32, row * width + column of the first extreme. argmin is 0 if the layer cannot be negative.
    sum, square: float64, sums of the values and of their squares over positions.
    active: int32, number of positions above zero.
    logits: float32 [images, classes], or None if the chosen layers do not include the network's output.
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
    """The tensors [images, units] that reducers write to, on the network's device.

    They are those of `BatchStatistics`, without mean and logits. They are transferred once per batch and not once per
    layer, so that the forward pass never waits for a GPU.
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
        """The CPU tensors as arrays, in the order above and the same memory. Slicing arrays is many times faster."""
        return tuple(getattr(self, f.name).numpy() for f in fields(self))

    def rows(self, first: int, last: int) -> Buffers:
        """Return the buffers of the images from `first` to before `last`, in the same memory."""
        return Buffers(*(getattr(self, f.name)[first:last] for f in fields(self)))

    def measured(self, positions: NDArray[np.float64]) -> BatchStatistics:
        """Return the statistics on the CPU; CPU tensors share their memory with them.

        positions: float64 [units], the number of positions that each unit's sums run over.
        """
        arrays = {f.name: getattr(self, f.name).cpu().numpy() for f in fields(self)}
        return BatchStatistics(mean=(arrays["sum"] / positions).astype(np.float32), **arrays)


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
        """The index of each layer's first unit, and the number of units: int64 [layers + 1]."""
        return np.cumsum([0, *(layer.channels for layer in self.layers)]).astype(np.int64)

    def slice(self, layer_index: int) -> slice:
        offsets = self.offsets
        return slice(int(offsets[layer_index]), int(offsets[layer_index + 1]))

    def name(self, unit: int) -> str:
        layer_index = int(np.searchsorted(self.offsets, unit, side="right")) - 1
        return f"{self.layers[layer_index].name}:{unit - int(self.offsets[layer_index])}"


def sums_in_double(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sums over positions of an activation [n, C, H, W] and of its squares, both float64 [n, C].

    Reducers square in float32, which overflows beyond 1.8e19. Whatever is not finite here was not finite in `x`.
    """
    flat = x.double().flatten(2)
    shift = flat[:, :, :1]
    deviations = flat - shift  # the variance of a constant is exactly 0
    total, square = deviations.sum(2), deviations.square().sum(2)
    first, count = shift[:, :, 0], flat.shape[2]
    return total + count * first, square + first * (2 * total + count * first)


def check_finite(out: BatchStatistics, images: int, names: Callable[[int], str]) -> None:
    """Raise UsageError if any value of the first `images` images was a NaN or an infinity; both show in the sums.

    The message names the first such unit. `names` returns the name of a unit by its index.
    """
    bad = ~np.isfinite(out.square[:images])
    if bad.any():
        image, unit = (int(i) for i in np.argwhere(bad)[0])
        raise UsageError(
            f"unit {names(unit)} is not finite on picture {image} of its batch ({int(bad.any(0).sum())} units in all): "
            "check the weights and the preprocessing; a precision narrower than float32 can overflow"
        )


def check_sign(layer: Layer, lowest: float) -> None:
    """Raise UsageError if a layer that cannot be negative, according to its graph, has a negative value."""
    if not layer.signed and lowest < 0:
        raise UsageError(
            f"layer {layer.name} has values below zero, which its graph rules out: please report the model"
        )
