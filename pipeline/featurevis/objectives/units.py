"""Objectives of units: a channel, one position of a channel, a class, a blend of two channels, a whole layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pipeline.featurevis.objectives.objective import Activations, Objective, called, per_picture
from store.errors import UsageError, did_you_mean
from store.unit_name import check_channel, parse_unit_name

Channels = int | Sequence[int]  # one for all pictures, or one per picture
Reduce = Callable[[Tensor], Tensor]  # maps [n, H, W] to one number each, [n]


def channel(layer: str, channels: Channels, batch: int | None = None) -> Objective:
    """Measure the mean of a channel over all positions.

    `channels`: one for all pictures, or one per picture. `batch`: count only the picture with this index.
    """
    return _of_channels("channel", layer, channels, batch, lambda maps: maps.mean((1, 2)))


def neuron(
    layer: str, channels: Channels, y: int | None = None, x: int | None = None, batch: int | None = None
) -> Objective:
    """Measure one position of a channel, by default the centre.

    If a side is even, the centre is the lower or right of the two central positions.
    """
    position = "" if y is None and x is None else f", y={y}, x={x}"
    return _of_channels("neuron", layer, channels, batch, lambda maps: at(maps, y, x), position)


def class_logit(layer: str, label: int | str, batch: int | None = None) -> Objective:
    """Measure the logit of a class. `layer` must give logits.

    `label`: the index of the class, or one of its names in the model's labels.
    """

    def measure(T: Activations) -> Tensor:
        index = label if isinstance(label, int) else _index_of(label, T.labels)
        return per_picture(T, _maps(T(layer), index, layer).mean((1, 2)), batch)

    return Objective((layer,), called("class_logit", layer, label, batch=batch), measure)


def channel_interpolate(layer1: str, channel1: int, layer2: str, channel2: int) -> Objective:
    """Measure a blend of two channels that changes in equal steps along the batch.

    Only the first channel counts for the first picture, and only the second for the last.
    """

    def measure(T: Activations) -> Tensor:
        first = _maps(T(layer1), channel1, layer1).mean((1, 2))
        second = _maps(T(layer2), channel2, layer2).mean((1, 2))
        weights = torch.linspace(0, 1, len(first), dtype=first.dtype, device=first.device)
        return (1 - weights) * first + weights * second

    text = called("channel_interpolate", layer1, channel1, layer2, channel2)
    return Objective(tuple(dict.fromkeys((layer1, layer2))), text, measure, mixes=True)


def deepdream(layer: str) -> Objective:
    """Measure the mean square of a layer's activations: it amplifies what the layer sees. Mordvintsev et al., 2015."""
    return Objective((layer,), called("deepdream", layer), lambda T: T(layer).square().mean((1, 2, 3)))


def at(x: Tensor, y: int | None, x_: int | None) -> Tensor:
    """Return maps [..., H, W] at one position, by default the centre: [...]. Raises UsageError outside the map."""
    row = x.shape[-2] // 2 if y is None else y
    column = x.shape[-1] // 2 if x_ is None else x_
    if not (0 <= row < x.shape[-2] and 0 <= column < x.shape[-1]):
        raise UsageError(f"y = {row}, x = {column}: the map at this canvas is {x.shape[-2]} x {x.shape[-1]}")
    return x[..., row, column]


def parse(text: str) -> tuple[str, int]:
    """Return the layer and channel of "LAYER:CHANNEL". Raises UsageError for any other text."""
    unit = parse_unit_name(text)
    if unit.model:
        raise UsageError(f"objective {text!r}: an objective does not name its model: write {unit.layer}:{unit.channel}")
    return unit.layer, unit.channel


def _of_channels(
    name: str, layer: str, channels: Channels, batch: int | None, reduce: Reduce, more: str = ""
) -> Objective:
    many = None if isinstance(channels, int) else tuple(int(c) for c in channels)

    def said(number: object) -> str:
        return f"{name}({layer}:{number}{more}{'' if batch is None else f', batch={batch}'})"

    def measure(T: Activations) -> Tensor:
        return per_picture(T, reduce(_maps(T(layer), channels if many is None else many, layer)), batch)

    return Objective((layer,), said(channels) if many is None else tuple(said(c) for c in many), measure)


def _maps(activations: Tensor, channels: Channels, layer: str) -> Tensor:
    """Return the map of each picture's own channel: [n, H, W]."""
    n, known = activations.shape[:2]
    for number in (channels,) if isinstance(channels, int) else channels:
        check_channel(layer, number, known)
    if isinstance(channels, int):
        return activations[:, channels].contiguous()  # the layout of gathered maps, on which a mean's last bit depends
    if len(channels) != n:
        raise UsageError(f"{len(channels)} channels of {layer} for a batch of {n} pictures: give one per picture")
    device = activations.device
    return activations[torch.arange(n, device=device), torch.tensor(tuple(channels), device=device)]


def _index_of(label: str, labels: tuple[str, ...] | None) -> int:
    if labels is None:
        raise UsageError(f"label {label!r}: this model has no labels; give the class's index")
    indices = [i for i, text in enumerate(labels) if label in (text, *(name.strip() for name in text.split(",")))]
    if len(indices) == 1:
        return indices[0]
    if indices:
        raise UsageError(f"label {label!r} is ambiguous: classes {', '.join(map(str, indices))}; give the index")
    raise UsageError(f"label {label!r} is unknown: {did_you_mean(label, labels) or 'give the index'}")
