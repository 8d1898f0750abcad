"""An objective is activations -> scalar: of a layer's activations [n, C, H, W] it makes one number an element, [n].

Element i of the result depends on element i of the batch only, so that pictures rendered together do not touch.
After Lucid, https://github.com/tensorflow/lucid/blob/master/lucid/optvis/objectives.py
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from store.errors import UsageError

Channels = int | Sequence[int]  # one for every element, or one an element


@dataclass(frozen=True)
class Objective:
    """`measure` takes the activations [n, C, H, W] of `layer` and gives [n]; `+ - *` combine those of one layer."""

    layer: str
    description: str
    measure: Callable[[Tensor], Tensor]

    def __call__(self, activations: Tensor) -> Tensor:
        return self.measure(activations)

    def __add__(self, other: Objective | float) -> Objective:
        if isinstance(other, Objective):
            if other.layer != self.layer:
                raise UsageError(
                    f"{self} + {other}: an objective reads one layer, found {self.layer} and {other.layer}"
                )
            second = other.measure
            return Objective(self.layer, f"({self} + {other})", lambda x: self.measure(x) + second(x))
        return Objective(self.layer, f"({self} + {other:g})", lambda x: self.measure(x) + other)

    def __mul__(self, factor: float) -> Objective:
        return Objective(self.layer, f"{factor:g} * {self}", lambda x: self.measure(x) * factor)

    def __neg__(self) -> Objective:
        return self * -1.0

    def __sub__(self, other: Objective | float) -> Objective:
        return self + (-other)

    __radd__ = __add__
    __rmul__ = __mul__

    def __str__(self) -> str:
        return self.description


def channel(layer: str, channels: Channels) -> Objective:
    """The mean of a channel over all positions."""
    return Objective(layer, f"{layer}:{channels}", lambda x: _maps(x, channels).mean((1, 2)))


def neuron(layer: str, channels: Channels, y: int | None = None, x: int | None = None) -> Objective:
    """One position of a channel: the centre, or the lower right of the four central ones, where none is given."""

    def measure(activations: Tensor) -> Tensor:
        maps = _maps(activations, channels)
        row = maps.shape[1] // 2 if y is None else y
        column = maps.shape[2] // 2 if x is None else x
        return maps[:, row, column]

    place = "centre" if y is None and x is None else f"{'centre' if y is None else y},{'centre' if x is None else x}"
    return Objective(layer, f"{layer}:{channels}@{place}", measure)


KINDS: dict[str, Callable[[str, Channels], Objective]] = {"channel": channel, "neuron": neuron}


def parse(text: str) -> tuple[str, int]:
    """The layer and channel of "LAYER:CHANNEL"."""
    layer, _, number = text.rpartition(":")
    if not layer or not number.isdecimal():
        raise UsageError(f"objective {text!r}: expected LAYER:CHANNEL with a channel from 0, e.g. blocks.2.1.add:5")
    return layer, int(number)


def _maps(activations: Tensor, channels: Channels) -> Tensor:
    """[n, H, W], each element's own channel."""
    if isinstance(channels, int):
        return activations[:, channels].contiguous()  # as gathered: a mean's last bit depends on the layout
    device = activations.device
    return activations[torch.arange(len(channels), device=device), torch.tensor(tuple(channels), device=device)]
