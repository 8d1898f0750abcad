"""How pictures are rendered: everything but the objective."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pipeline.featurevis.parameterizations import COLORS, PARAMETERIZATIONS, Parameterization
from pipeline.featurevis.transforms import NAMED, CollapseAlpha, Size, Transform, default_of
from pipeline.runtime.devices import DTYPES
from store.errors import UsageError

OPTIMIZERS: dict[str, Callable[[list[Tensor], float], torch.optim.Optimizer]] = {
    "adam": lambda parameters, rate: torch.optim.Adam(parameters, lr=rate, fused=True),
    "nadam": lambda parameters, rate: torch.optim.NAdam(parameters, lr=rate),
    "sgd": lambda parameters, rate: torch.optim.SGD(parameters, lr=rate),
}
MakeParameterization = Callable[..., Parameterization]


@dataclass(frozen=True)
class Settings:
    """How pictures are rendered.

    `size`: the side of the canvas in pixels, or (height, width).
    `thresholds`: steps after which the pictures are also kept, as snapshots; 0 is the start.
    `learning_rate`, `optimizer`: 0 and "" mean those of the parameterization.
    `input`: whether the network sees the transformed canvas resized to the model's input size ("model", as in lucent)
    or at its own size ("canvas", as in Lucid).
    `parameterization`: a name, or a callable with the signature of `Parameterization`.
    `transforms`: a name, or a sequence of transforms.
    `preprocess`: maps pictures in 0..1 to what the network takes, instead of the model's own normalization.
    `precision`: the number type in which the network computes. Pictures, objective and optimizer stay float32.
    `redirected`: the number of first steps in which a ReLU that would block all gradients lets them through.
    """

    size: int | Size = 128
    steps: int = 512
    thresholds: tuple[int, ...] = ()
    batch: int = 16
    learning_rate: float = 0.0
    optimizer: str = ""
    seed: int = 0
    input: str = "model"
    parameterization: str | MakeParameterization = "fft"
    color: str = "decorrelated"
    alpha: bool = False
    transforms: str | Sequence[Transform] = "default"
    preprocess: Callable[[Tensor], Tensor] | None = None
    precision: str = "float32"
    redirected: int = 16

    def __post_init__(self) -> None:
        one_of("input", self.input, ("canvas", "model"))
        one_of("color", self.color, COLORS)
        one_of("precision", self.precision, DTYPES)
        one_of("optimizer", self.optimizer, ("", *OPTIMIZERS))
        if isinstance(self.parameterization, str):
            one_of("parameterization", self.parameterization, PARAMETERIZATIONS)
        if isinstance(self.transforms, str):
            one_of("transforms", self.transforms, NAMED)
        for name, low in (("steps", 0), ("batch", 1), ("seed", 0), ("redirected", 0), ("learning_rate", 0)):
            if getattr(self, name) < low:
                raise UsageError(f"{name} = {getattr(self, name)}: must be at least {low}")
        if min(self.canvas) < 1:
            raise UsageError(f"size = {self.size}: must be at least 1")
        if any(not 0 <= threshold <= self.steps for threshold in self.thresholds):
            raise UsageError(f"thresholds = {self.thresholds}: each must be from 0 to steps = {self.steps}")

    @property
    def canvas(self) -> Size:
        """Height and width of the canvas in pixels."""
        return (self.size, self.size) if isinstance(self.size, int) else (int(self.size[0]), int(self.size[1]))

    @property
    def chain(self) -> tuple[Transform, ...]:
        """The transforms of every step. With `alpha`, the last one lays the pictures on a random background."""
        if self.transforms == "default":
            chosen = default_of(self.canvas)
        else:
            chosen = NAMED[self.transforms] if isinstance(self.transforms, str) else tuple(self.transforms)
        return (*chosen, CollapseAlpha()) if self.alpha else chosen

    def parameterize(
        self, starts: Sequence[torch.Generator], channels: int, group: int, device: torch.device
    ) -> Parameterization:
        """Return pictures of the size of the canvas at their random starts, one per generator in `starts`."""
        chosen = self.parameterization
        make: MakeParameterization = PARAMETERIZATIONS[chosen] if isinstance(chosen, str) else chosen
        return make(starts, (channels, *self.canvas), self.color, self.alpha, group, device)

    def optimize(self, image: Parameterization) -> torch.optim.Optimizer:
        rate = self.learning_rate or image.learning_rate
        return OPTIMIZERS[self.optimizer or image.optimizer](image.parameters, rate)


def one_of(name: str, value: Any, allowed: Any) -> None:
    if value not in allowed:
        raise UsageError(f"{name} = {value!r}: must be one of {', '.join(repr(a) if a == '' else a for a in allowed)}")
