"""Rendering: an optimizer changes what a parameterization holds until an objective is high.

A picture depends on its own objective, settings and number, and on the batch size; never on what shares its batch,
unless the objective or the parameterization makes a group of them.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.graph import Layer
from pipeline.machine import DTYPES
from pipeline.models import Model
from store.errors import UsageError

from . import kinds
from .kinds import Picture
from .objectives import INPUT, Activations, Objective
from .settings import Settings
from .subnetwork import Subnetwork
from .transforms import compose, composed, sizes

FRESH = 8  # draws of the transforms that a finished picture is judged under
HALF_SCALE = 4096.0  # of a float16 network's gradients, most of which would be zero
OnStep = Callable[[int, Tensor], None]  # the step from 0; the objective of each picture [n], before that step
Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Rendering:
    """`images` uint8 [n, H, W, C]; `values` float32 [n]: the objective on the pictures as stored, without transforms,
    at the model's own input size; `transformed` float32 [n]: its mean over fresh draws of the transforms, at that size
    too; `input`: what the network saw meanwhile, "canvas" or "model"; `snapshots` uint8 [thresholds, n, H, W, C]."""

    images: Pixels
    values: NDArray[np.float32]
    transformed: NDArray[np.float32]
    input: str
    snapshots: Pixels

    def first(self, n: int) -> Rendering:
        return Rendering(self.images[:n], self.values[:n], self.transformed[:n], self.input, self.snapshots[:, :n])


class Renderer:
    """What all pictures of some layers share: the prepared network and the settings. `input` is what is in force,
    "model" also where the network does not run at the canvas' sizes."""

    def __init__(self, model: Model, layers: Layer | Sequence[Layer], settings: Settings):
        self.layers = (layers,) if isinstance(layers, Layer) else tuple(layers)
        self.settings = settings
        self.network = Subnetwork(model, self.layers, settings.preprocess, DTYPES[settings.precision])
        fits = settings.input == "canvas" and self.network.takes(sorted(sizes(settings.chain, settings.canvas)))
        self.input = "canvas" if fits else "model"

    def render(
        self, pictures: Sequence[Picture], kind: str = "channel", group: int = 1, on_step: OnStep | None = None
    ) -> Rendering:
        """One batch: at most `settings.batch` pictures, whole groups; repeats of the last group fill it."""
        n, size = len(pictures), self.settings.batch
        if not 0 < n <= size or n % group or size % group:
            raise UsageError(f"{n} pictures in a batch of {size}" + (f", in groups of {group}" if group > 1 else ""))
        filled = [*pictures, *list(pictures[-group:]) * ((size - n) // group)]
        measured = kinds.measured(kind, self.layers[0], [picture.channel for picture in filled])
        starts = [(measured.text_of(i), p.direction, p.repeat) for i, p in enumerate(filled)]
        objective = kinds.ascended(kind, self.layers, filled, group)
        return self.ascend(objective, starts, measured=measured, group=group, on_step=on_step).first(n)

    def ascend(
        self,
        objective: Objective,
        starts: Sequence[tuple[Any, ...]],
        *,
        measured: Objective | None = None,
        group: int = 1,
        references: Tensor | None = None,
        on_step: OnStep | None = None,
    ) -> Rendering:
        """One picture for each of `starts`, which name its random start. `measured`: what is reported (else the
        objective); `references`: pictures [m, C, h, w] in 0..1 that are moved likewise and compared with."""
        settings, device = self.settings, self.network.device
        generators = [_generator(settings.seed, *start) for start in starts]
        image = settings.parameterize(generators, self.network.channels, group, device)
        optimizer = settings.optimize(image)
        measured = measured or objective
        snapshots: list[Pixels] = []
        for step in range(settings.steps):
            seen = self._seen(image(), references, step)
            values = objective(seen)
            self._set_gradients(image.parameters, values.sum())
            if on_step is not None:
                with torch.no_grad():
                    on_step(step, values.detach() if measured is objective else measured(seen))
            del seen, values
            optimizer.step()
            if step + 1 in settings.thresholds:
                snapshots.append(_stored(image()))
        return self._finished(image(), measured, references, snapshots)

    def _set_gradients(self, parameters: list[Tensor], total: Tensor) -> None:
        scale = HALF_SCALE if self.settings.precision == "float16" else 1.0
        found = torch.autograd.grad(-total if scale == 1 else -total * scale, parameters)
        for parameter, gradient in zip(parameters, found, strict=True):
            parameter.grad = gradient if scale == 1 else gradient / scale

    def _seen(self, x: Tensor, references: Tensor | None, step: int) -> Activations:
        """What the objective sees in a step: everything moved by that step's draw."""
        redirect, key = step < self.settings.redirected, (self.settings.seed, step)
        found = self.network(self._fitted(self._drawn(x, key)), redirect)
        compared: dict[str, Tensor] = {}
        if references is not None:
            with torch.no_grad():
                compared = {INPUT: references, **self.network(self._fitted(self._drawn(references, key)))}
        return Activations({INPUT: x, **found}, compared, self.network.labels)

    def _drawn(self, x: Tensor, key: tuple[int, ...]) -> Tensor:
        return compose(self.settings.chain, x, np.random.default_rng(key))

    def _fitted(self, x: Tensor) -> Tensor:
        return self.network.preprocess.resized(x) if self.input == "model" else x

    @torch.no_grad()
    def _finished(
        self, x: Tensor, measured: Objective, references: Tensor | None, snapshots: list[Pixels]
    ) -> Rendering:
        images = _stored(x)
        x = torch.from_numpy(images).to(x.device).permute(0, 3, 1, 2).to(x.dtype) / 255
        still = composed if self.settings.alpha else _same
        values = measured(self._judged(x, references, still))
        keys = [(self.settings.seed, 1, draw) for draw in range(FRESH if self.settings.chain else 0)]
        moves = [functools.partial(self._drawn, key=key) for key in keys]
        fresh = [measured(self._judged(x, references, move)) for move in moves]
        mean = torch.stack(fresh).mean(0) if fresh else values
        kept = np.stack(snapshots) if snapshots else np.zeros((0, *images.shape), np.uint8)
        return Rendering(images, values.float().cpu().numpy(), mean.float().cpu().numpy(), self.input, kept)

    def _judged(self, x: Tensor, references: Tensor | None, move: Callable[[Tensor], Tensor]) -> Activations:
        """What a finished picture gives at the model's input size."""
        resized = self.network.preprocess.resized
        found = self.network(resized(move(x)))
        compared = {} if references is None else {INPUT: references, **self.network(resized(move(references)))}
        return Activations({INPUT: x, **found}, compared, self.network.labels)


def _stored(x: Tensor) -> Pixels:
    """[n, C, H, W] in 0..1 -> uint8 [n, H, W, C]."""
    stored = (x.detach() * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
    return stored.cpu().numpy()


def _generator(*key: Any) -> torch.Generator:
    digest = hashlib.sha256("\0".join(str(part) for part in key).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def _same(x: Tensor) -> Tensor:
    return x
