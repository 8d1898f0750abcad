"""Objectives of a direction in a layer's activation space, which need not be a channel's.

More contrast alone raises a dot product. Multiplied by a power of the cosine, it also has to point in the right
direction, as in Carter et al., Activation Atlas, https://distill.pub/2019/activation-atlas
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.featurevis.objectives.objective import Activations, Objective, called, per_picture
from pipeline.featurevis.objectives.units import at
from store.errors import UsageError

Vector = Tensor | NDArray[np.floating] | Sequence[float]  # [C], or [n, C] for one per picture
LEAST_COSINE = 0.1  # Lucid's floor: below it, a power of the cosine would pass no gradient
TINY = 1e-4  # added to lengths, as Lucid does


def direction(layer: str, vector: Vector, cossim_pow: float = 0, batch: int | None = None) -> Objective:
    """Measure the mean over positions of activation . vector, times their cosine to the power `cossim_pow`.

    The cosine counts as at least 0.1. `batch`: count only the picture with this index.
    """
    vectors = _vectors(vector)

    def measure(T: Activations) -> Tensor:
        x = T(layer)
        return per_picture(T, _dot(x, _like(vectors, x)[:, :, None, None], cossim_pow).mean((1, 2)), batch)

    return Objective((layer,), _text("direction", layer, vectors, batch), measure)


def direction_neuron(
    layer: str, vector: Vector, y: int | None = None, x: int | None = None, cossim_pow: float = 0,
    batch: int | None = None,
) -> Objective:  # fmt: skip
    """Measure the same as `direction` at one position, by default the centre."""
    vectors = _vectors(vector)

    def measure(T: Activations) -> Tensor:
        here = at(T(layer), y, x)
        return per_picture(T, _dot(here, _like(vectors, here), cossim_pow), batch)

    return Objective((layer,), _text("direction_neuron", layer, vectors, batch), measure)


def direction_cossim(layer: str, vector: Vector, batch: int | None = None) -> Objective:
    """Measure the mean over positions of the cosine between activation and vector."""
    vectors = _vectors(vector)

    def measure(T: Activations) -> Tensor:
        x = T(layer)
        return per_picture(T, _cosine(x, _like(vectors, x)[:, :, None, None]).mean((1, 2)), batch)

    return Objective((layer,), _text("direction_cossim", layer, vectors, batch), measure)


def tensor_direction(
    layer: str, tensor: Tensor | NDArray[np.floating], cossim_pow: float = 0, batch: int | None = None
) -> Objective:
    """Measure the mean over positions of activation . tensor [C, H, W], times their cosine to the power `cossim_pow`.

    If the tensor and the map differ in size, their centres are aligned and only the overlap counts.
    """
    target = torch.as_tensor(tensor, dtype=torch.float32)
    if target.ndim != 3:
        raise UsageError(f"tensor_direction: expected a tensor [C, H, W], found {list(target.shape)}")

    def measure(T: Activations) -> Tensor:
        x = T(layer)
        _same_channels(layer, x.shape[1], target.shape[0])
        height, width = (min(a, b) for a, b in zip(x.shape[2:], target.shape[1:], strict=True))
        goal = _central(target.to(x), height, width)
        return per_picture(T, _dot(_central(x, height, width), goal[None], cossim_pow).mean((1, 2)), batch)

    return Objective((layer,), called("tensor_direction", layer, target, batch=batch), measure)


def dot_compare(layer: str, cossim_pow: float = 0) -> Objective:
    """Measure the dot product of the whole maps of each picture and its reference, which a caricature maximizes.

    It is multiplied by their cosine, at least 0.1, to the power `cossim_pow`.
    """

    def measure(T: Activations) -> Tensor:
        x, reference = T(layer).flatten(1), T.reference(layer).flatten(1)
        dot = (x * reference).sum(1)
        cosine = dot / (x.norm(dim=1) * reference.norm(dim=1) + 1e-6)
        return dot * cosine.clamp(min=LEAST_COSINE) ** cossim_pow if cossim_pow else dot

    return Objective((layer,), called("dot_compare", layer, cossim_pow), measure)


def _vectors(vector: Vector) -> Tensor:
    vectors = torch.as_tensor(np.asarray(vector) if isinstance(vector, Sequence) else vector, dtype=torch.float32)
    if vectors.ndim not in (1, 2) or vectors.numel() == 0:
        raise UsageError(
            f"a direction must be a vector [C], or [n, C] for one per picture; found {list(vectors.shape)}"
        )
    return vectors


def _text(name: str, layer: str, vectors: Tensor, batch: int | None) -> str | tuple[str, ...]:
    text = called(name, layer, vectors, batch=batch)
    return text if vectors.ndim == 1 else (text,) * len(vectors)


def _like(vectors: Tensor, x: Tensor) -> Tensor:
    """Return the vectors as [1 or n, C] with the device and dtype of x. Raises UsageError if they do not fit x."""
    rows = torch.atleast_2d(vectors).to(x)
    _same_channels("a direction", x.shape[1], rows.shape[1])
    if len(rows) not in (1, len(x)):
        raise UsageError(f"{len(rows)} directions for a batch of {len(x)} pictures: give one, or one per picture")
    return rows


def _same_channels(name: str, layer: int, given: int) -> None:
    if layer != given:
        raise UsageError(f"{name}: the layer has {layer} channels, the direction {given}")


def _dot(x: Tensor, v: Tensor, power: float) -> Tensor:
    """Return the dot product over axis 1, times the cosine to the given power."""
    dot = (x * v).sum(1)
    if power == 0:
        return dot
    cosine = dot / ((TINY + x.norm(dim=1)) * (TINY + v.norm(dim=1)))
    return dot * cosine.clamp(min=LEAST_COSINE) ** power


def _cosine(x: Tensor, v: Tensor) -> Tensor:
    return torch.nn.functional.cosine_similarity(x, v, dim=1)


def _central(x: Tensor, height: int, width: int) -> Tensor:
    top, left = (x.shape[-2] - height) // 2, (x.shape[-1] - width) // 2
    return x[..., top : top + height, left : left + width]
