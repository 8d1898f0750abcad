"""The reducer built from torch's own reductions, for any device."""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.scan.batch_statistics import Buffers, sums_in_double


def reduce_torch(x: Tensor, units: slice, signed: bool, out: Buffers) -> None:
    """Reduce an activation [n, C, H, W] with torch's own reductions, without waiting for the device."""
    images = x.shape[0]
    flat = x.float().flatten(2)
    out.max[:images, units], out.argmax[:images, units] = first_extreme(flat, largest=True)
    if signed:
        out.min[:images, units], out.argmin[:images, units] = first_extreme(flat, largest=False)
    else:
        out.min[:images, units] = flat.amin(2)
    shift = flat[:, :, :1]
    deviations = flat - shift  # as in the numba reducer: the variance of a constant is exactly 0
    total = deviations.sum(2, dtype=torch.float64)
    square = deviations.square().sum(2, dtype=torch.float64)
    first, count = shift[:, :, 0].double(), flat.shape[2]
    out.sum[:images, units] = total + count * first
    out.square[:images, units] = square + first * (2 * total + count * first)
    if flat.device.type == "cpu" and not bool(torch.isfinite(square).all()):  # on a GPU, asking would wait for it
        out.sum[:images, units], out.square[:images, units] = sums_in_double(x)
    out.active[:images, units] = (flat > 0).sum(2, dtype=torch.int32)


def first_extreme(flat: Tensor, largest: bool) -> tuple[Tensor, Tensor]:
    """Return the extreme over the last axis and its first position; `torch.max` promises no order among ties."""
    value = flat.amax(2) if largest else flat.amin(2)
    positions = torch.arange(flat.shape[2], device=flat.device, dtype=torch.int32)
    beyond = torch.full_like(positions, flat.shape[2])
    return value, torch.where(flat == value[..., None], positions, beyond).amin(2)
