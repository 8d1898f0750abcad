"""Objectives of a direction in a layer's activation space, which need not be a channel's.

A dot product alone is raised by mere contrast; times its cosine to a power it must also point the right way, as in
Carter et al., Activation Atlas, https://distill.pub/2019/activation-atlas
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

Vector = Tensor | NDArray[np.floating] | Sequence[float]  # [C], or one a picture, [n, C]
LEAST_COSINE = 0.1  # below it the power would let no gradient through: Lucid's floor
TINY = 1e-4  # added to lengths, as Lucid does


def direction(layer: str, vector: Vector, cossim_pow: float = 0, batch: int | None = None) -> Objective:
    """The mean over positions of activation . vector, times its cosine (at least 0.1) to `cossim_pow`."""
    vectors = _vectors(vector)

    def measure(T: Activations) -> Tensor:
        x = T(layer)
        return per_picture(T, _dot(x, _like(vectors, x)[:, :, None, None], cossim_pow).mean((1, 2)), batch)

    return Objective((layer,), _text("direction", layer, vectors, batch), measure)


def direction_neuron(
    layer: str, vector: Vector, y: int | None = None, x: int | None = None, cossim_pow: float = 0,
    batch: int | None = None,
) -> Objective:  # fmt: skip
    """The same at one position, by default the centre."""
    vectors = _vectors(vector)

    def measure(T: Activations) -> Tensor:
        here = at(T(layer), y, x)
        return per_picture(T, _dot(here, _like(vectors, here), cossim_pow), batch)

    return Objective((layer,), _text("direction_neuron", layer, vectors, batch), measure)


def direction_cossim(layer: str, vector: Vector, batch: int | None = None) -> Objective:
    """The mean over positions of the cosine between activation and vector."""
    vectors = _vectors(vector)

    def measure(T: Activations) -> Tensor:
        x = T(layer)
        return per_picture(T, _cosine(x, _like(vectors, x)[:, :, None, None]).mean((1, 2)), batch)

    return Objective((layer,), _text("direction_cossim", layer, vectors, batch), measure)


def tensor_direction(
    layer: str, tensor: Tensor | NDArray[np.floating], cossim_pow: float = 0, batch: int | None = None
) -> Objective:
    """The mean over positions of activation . tensor, [C, H, W], laid on the centre where the maps differ in size."""
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
    """Each picture's whole map . its reference's, times their cosine to `cossim_pow`: what a caricature maximizes."""

    def measure(T: Activations) -> Tensor:
        mine, its = T(layer).flatten(1), T.reference(layer).flatten(1)
        dot = (mine * its).sum(1)
        cosine = dot / (mine.norm(dim=1) * its.norm(dim=1) + 1e-6)
        return dot * cosine.clamp(min=LEAST_COSINE) ** cossim_pow if cossim_pow else dot

    return Objective((layer,), called("dot_compare", layer, cossim_pow), measure)


def _vectors(vector: Vector) -> Tensor:
    found = torch.as_tensor(np.asarray(vector) if isinstance(vector, Sequence) else vector, dtype=torch.float32)
    if found.ndim not in (1, 2) or found.numel() == 0:
        raise UsageError(f"a direction is a vector [C], or one a picture [n, C]; found {list(found.shape)}")
    return found


def _text(name: str, layer: str, vectors: Tensor, batch: int | None) -> str | tuple[str, ...]:
    text = called(name, layer, vectors, batch=batch)
    return text if vectors.ndim == 1 else (text,) * len(vectors)


def _like(vectors: Tensor, x: Tensor) -> Tensor:
    """[1 or n, C] where x is."""
    found = torch.atleast_2d(vectors).to(x)
    _same_channels("a direction", x.shape[1], found.shape[1])
    if len(found) not in (1, len(x)):
        raise UsageError(f"{len(found)} directions for a batch of {len(x)} pictures: give one a picture")
    return found


def _same_channels(what: str, layer: int, given: int) -> None:
    if layer != given:
        raise UsageError(f"{what}: the layer has {layer} channels, the direction {given}")


def _dot(x: Tensor, v: Tensor, power: float) -> Tensor:
    """Over axis 1."""
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
