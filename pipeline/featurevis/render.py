"""Rendering: an optimizer changes what a parameterization holds until an objective of one layer is high.

A picture depends on its own unit, settings and number, and on the batch size; never on what shares its batch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from pipeline.graph import Layer
from pipeline.models import Model
from store.errors import UsageError

from .objectives import KINDS, Objective, channel, parse
from .parameterizations import PARAMETERIZATIONS
from .subnetwork import Subnetwork
from .transforms import NAMED, Transform, compose, sizes

REDIRECTED_STEPS = 16
DIRECTIONS = {"positive": 1.0, "negative": -1.0}
OnStep = Callable[[int, Tensor], None]  # the step from 0; the objective of each picture [n], before that step


@dataclass(frozen=True)
class Settings:
    """How pictures are rendered. `input`: the network sees the moved canvas at its own size, or at the model's."""

    size: int = 128
    steps: int = 512
    batch: int = 8
    learning_rate: float = 0.05
    seed: int = 0
    input: str = "canvas"
    parameterization: str = "fft"
    transforms: str | tuple[Transform, ...] = "default"
    decorrelate: bool = True

    def __post_init__(self) -> None:
        _one_of("input", self.input, ("canvas", "model"))
        _one_of("parameterization", self.parameterization, PARAMETERIZATIONS)
        if isinstance(self.transforms, str):
            _one_of("transforms", self.transforms, NAMED)
        for name, low in (("size", 1), ("steps", 0), ("batch", 1), ("seed", 0)):
            if getattr(self, name) < low:
                raise UsageError(f"{name} = {getattr(self, name)}: must be at least {low}")

    @property
    def chain(self) -> tuple[Transform, ...]:
        return NAMED[self.transforms] if isinstance(self.transforms, str) else self.transforms


@dataclass(frozen=True)
class Picture:
    """One picture to render: a channel, which way, and which of several random starts."""

    channel: int
    direction: str = "positive"
    repeat: int = 0


@dataclass(frozen=True)
class Rendering:
    """`images` uint8 [n, H, W, C]; `values` float32 [n]: the objective's activation on the picture as stored,
    without transforms, at the model's own input size."""

    images: NDArray[np.uint8]
    values: NDArray[np.float32]


class Renderer:
    """What all pictures of a layer share: the prepared network and the settings. `input` is what is in force,
    "model" also where the network does not run at the canvas' sizes."""

    def __init__(self, model: Model, layer: Layer, settings: Settings):
        self.layer = layer
        self.settings = settings
        self.network = Subnetwork(model, layer)
        fits = settings.input == "canvas" and self.network.takes(sorted(sizes(settings.chain, settings.size)))
        self.input = "canvas" if fits else "model"

    def render(self, pictures: Sequence[Picture], kind: str = "channel", on_step: OnStep | None = None) -> Rendering:
        """One batch: at most `settings.batch` pictures; repeats of the last fill it."""
        _one_of("kind", kind, KINDS)
        n = len(pictures)
        if not 0 < n <= self.settings.batch:
            raise UsageError(f"{n} pictures in a batch of {self.settings.batch}")
        for picture in pictures:
            _check_channel(self.layer, picture.channel)
        filled = [*pictures, *[pictures[-1]] * (self.settings.batch - n)]
        objective = KINDS[kind](self.layer.name, [picture.channel for picture in filled])
        starts = [(picture.channel, picture.direction, picture.repeat) for picture in filled]
        done = self.ascend(objective, [picture.direction for picture in filled], starts, on_step)
        return Rendering(done.images[:n], done.values[:n])

    def ascend(
        self,
        objective: Objective,
        directions: Sequence[str],
        starts: Sequence[tuple[Any, ...]],
        on_step: OnStep | None = None,
    ) -> Rendering:
        """One picture for each of `directions`, from the random start that seed, layer and `starts` name."""
        settings = self.settings
        for direction in directions:
            _one_of("direction", direction, DIRECTIONS)
        generators = [_generator(settings.seed, self.layer.name, *start) for start in starts]
        shape = (self.network.channels, settings.size, settings.size)
        make = PARAMETERIZATIONS[settings.parameterization]
        image = make(generators, shape, settings.decorrelate, self.network.device)
        signs = torch.tensor([DIRECTIONS[direction] for direction in directions], device=self.network.device)
        optimizer = torch.optim.Adam([image.parameters], lr=settings.learning_rate)
        for step in range(settings.steps):
            values = objective(self._activations(image(), step))
            optimizer.zero_grad()
            (image.parameters.grad,) = torch.autograd.grad(-(signs * values).sum(), image.parameters)
            optimizer.step()
            if on_step is not None:
                on_step(step, values.detach())
        return self._finished(image(), objective)

    def _activations(self, x: Tensor, step: int) -> Tensor:
        x = compose(self.settings.chain, x, np.random.default_rng((self.settings.seed, step)))
        if self.input == "model":
            x = self.network.preprocess.resized(x)
        return self.network(x, redirect=step < REDIRECTED_STEPS)

    @torch.no_grad()
    def _finished(self, x: Tensor, objective: Objective) -> Rendering:
        images = (x * 255).round().to(torch.uint8)
        values = objective(self.network(self.network.preprocess.resized(images.to(x.dtype) / 255)))
        return Rendering(images.permute(0, 2, 3, 1).contiguous().cpu().numpy(), values.float().cpu().numpy())


def render(
    model: Model,
    objective: str | Objective,
    *,
    direction: str = "positive",
    repeats: int = 1,
    progress: bool = True,
    **settings: Any,
) -> Rendering:
    """Pictures of one objective, "LAYER:CHANNEL" or an Objective, from `repeats` random starts in one batch.

    `settings` are the fields of `Settings`; `batch` is `repeats`, unless given.
    """
    if isinstance(objective, str):
        name, number = parse(objective)
        layer = _layer(model, name)
        _check_channel(layer, number)
        objective = channel(layer.name, number)
        start: Any = number
    else:
        layer, start = _layer(model, objective.layer), str(objective)
    chosen = Settings(**{"batch": repeats, **settings})
    if not 0 < repeats <= chosen.batch:
        raise UsageError(f"repeats = {repeats}: must be from 1 to batch, {chosen.batch}")
    renderer = Renderer(model, layer, chosen)
    numbers = [min(i, repeats - 1) for i in range(chosen.batch)]
    with tqdm(total=chosen.steps, desc=str(objective), unit="step", disable=not progress) as bar:
        starts = [(start, direction, number) for number in numbers]
        done = renderer.ascend(objective, [direction] * chosen.batch, starts, lambda step, values: _show(bar, values))
    return Rendering(done.images[:repeats], done.values[:repeats])


def render_units(
    model: Model,
    layer: Layer,
    channels: Sequence[int],
    directions: Sequence[str],
    settings: Settings,
    kind: str = "channel",
    repeats: int = 1,
    on_step: OnStep | None = None,
) -> Rendering:
    """Every channel in every direction from `repeats` random starts, in that order of nesting, batch after batch."""
    renderer = Renderer(model, layer, settings)
    pictures = [Picture(c, d, r) for c in channels for d in directions for r in range(repeats)]
    batches = [pictures[i : i + settings.batch] for i in range(0, len(pictures), settings.batch)]
    done = [renderer.render(batch, kind, on_step) for batch in batches]
    if not done:
        raise UsageError(f"{layer.name}: no picture asked for: give channels, directions and repeats")
    return Rendering(np.concatenate([d.images for d in done]), np.concatenate([d.values for d in done]))


def _generator(*key: Any) -> torch.Generator:
    digest = hashlib.sha256("\0".join(str(part) for part in key).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def _layer(model: Model, name: str) -> Layer:
    found = model.graph.layers([name])
    if len(found) != 1:
        raise UsageError(f"{name!r} matches {len(found)} layers: an objective reads one")
    return found[0]


def _check_channel(layer: Layer, number: int) -> None:
    if not 0 <= number < layer.channels:
        raise UsageError(f"{layer.name}:{number}: this layer has channels 0 to {layer.channels - 1}")


def _one_of(name: str, value: str, allowed: Any) -> None:
    if value not in allowed:
        raise UsageError(f"{name} = {value!r}: must be one of {', '.join(allowed)}")


def _show(bar: tqdm[Any], values: Tensor) -> None:
    bar.set_postfix_str(f"{values.mean():.3f}", refresh=False)
    bar.update()
