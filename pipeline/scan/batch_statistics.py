"""What one batch of pictures gives for every unit, and the two reducers that fill it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from store.errors import UsageError


@dataclass(frozen=True)
class Measured:
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
    """Where the reducers write, on the network's device: tensors [images, units] as `Measured` has them, without mean.

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

    def measured(self, positions: NDArray[np.float64]) -> Measured:
        """On the CPU (the same memory, where they are there); `positions`: that each unit's sums run over."""
        found = {f.name: getattr(self, f.name).cpu().numpy() for f in fields(self)}
        return Measured(mean=(found["sum"] / positions).astype(np.float32), **found)


def empty(images: int, units: int, device: torch.device | str = "cpu") -> Buffers:
    def new(dtype: torch.dtype) -> Tensor:
        return torch.empty((images, units), dtype=dtype, device=device)

    argmin = torch.zeros((images, units), dtype=torch.int32, device=device)
    return Buffers(
        new(torch.float32), new(torch.int32), new(torch.float32), argmin, new(torch.float64), new(torch.float64),
        new(torch.int32),
    )  # fmt: skip


Reducer = Callable[[Tensor, slice, bool, Buffers], None]  # activation [n, C, H, W], its units, signed, where to write


def reduce_numba(x: Tensor, units: slice, signed: bool, out: Buffers) -> None:
    """One pass over a CPU activation, channels last in memory (copied so where it is not)."""
    from pipeline.scan.reduce.cpu import reduce_rows

    images, channels, height, width = x.shape
    rows = x.float().permute(0, 2, 3, 1)
    if rows.stride(3) != 1 or (height > 1 and width > 1 and rows.stride(1) != width * rows.stride(2)):
        rows = rows.contiguous()
    position_stride = rows.stride(2) if width > 1 else rows.stride(1) if height > 1 else channels
    span = (images - 1) * rows.stride(0) + (height * width - 1) * position_stride + channels
    flat = torch.as_strided(rows, (span,), (1,)).numpy()
    reduce_rows(
        flat, rows.stride(0), position_stride, images, height * width, channels, signed,
        *(array[:images, units] for array in out.arrays),
    )  # fmt: skip


def reduce_torch(x: Tensor, units: slice, signed: bool, out: Buffers) -> None:
    """The same with torch's own reductions, on any device, without waiting for it."""
    images = x.shape[0]
    flat = x.float().flatten(2)
    out.max[:images, units], out.argmax[:images, units] = first_extreme(flat, largest=True)
    if signed:
        out.min[:images, units], out.argmin[:images, units] = first_extreme(flat, largest=False)
    else:
        out.min[:images, units] = flat.amin(2)
    shift = flat[:, :, :1]
    deviations = flat - shift  # as the compiled reducer: a constant has exactly no variance
    total = deviations.sum(2, dtype=torch.float64)
    square = deviations.square().sum(2, dtype=torch.float64)
    first, count = shift[:, :, 0].double(), flat.shape[2]
    out.sum[:images, units] = total + count * first
    out.square[:images, units] = square + first * (2 * total + count * first)
    out.active[:images, units] = (flat > 0).sum(2, dtype=torch.int32)


def first_extreme(flat: Tensor, largest: bool) -> tuple[Tensor, Tensor]:
    """Extreme over the last axis and the first place that has it (`torch.max` promises no order among ties)."""
    value = flat.amax(2) if largest else flat.amin(2)
    places = torch.arange(flat.shape[2], device=flat.device, dtype=torch.int32)
    beyond = torch.full_like(places, flat.shape[2])
    return value, torch.where(flat == value[..., None], places, beyond).amin(2)


def choose(device: str) -> Reducer:
    """The fastest reducer for a device: numba on a CPU, torch elsewhere."""
    return reduce_numba if device == "cpu" else reduce_torch


def check_finite(out: Measured, images: int, names: Callable[[int], str]) -> None:
    """A NaN or an infinity anywhere reaches the sums. Raises UsageError that names the first unit."""
    bad = ~np.isfinite(out.square[:images])
    if bad.any():
        image, unit = (int(i) for i in np.argwhere(bad)[0])
        raise UsageError(
            f"unit {names(unit)} is not finite on picture {image} of its batch ({int(bad.any(0).sum())} units in all): "
            "check the weights and the preprocessing; a precision narrower than float32 can overflow"
        )
