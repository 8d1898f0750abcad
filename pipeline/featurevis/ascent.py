"""The ascent of one batch: an optimizer changes the parameters of the pictures to raise an objective."""

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

from pipeline.featurevis.objectives import INPUT, Activations, Objective
from pipeline.featurevis.settings import Settings
from pipeline.featurevis.subnetwork import Subnetwork
from pipeline.featurevis.transforms import compose, composed
from store.errors import UsageError

FRESH = 8  # draws of the transforms under which a finished picture is evaluated
HALF_SCALE = 4096.0  # scales the gradients of a float16 network, most of which would otherwise round to zero
OnStep = Callable[[int, Tensor], None]  # gets the step, from 0, and each picture's measured value [n] before that step
Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Rendering:
    """The finished pictures of a batch and their measured values.

    `images`: uint8 [n, H, W, C].
    `values`: float32 [n], measured on the pictures as stored, without transforms, at the model's own input size.
    `transformed`: float32 [n], the mean over fresh draws of the transforms, also at the model's own input size.
    `input`: the size at which the network ran during the ascent, "canvas" or "model".
    `snapshots`: uint8 [thresholds, n, H, W, C], the pictures after the steps in `Settings.thresholds`.
    """

    images: Pixels
    values: NDArray[np.float32]
    transformed: NDArray[np.float32]
    input: str
    snapshots: Pixels

    def first(self, n: int) -> Rendering:
        """Return the first n pictures only."""
        return Rendering(self.images[:n], self.values[:n], self.transformed[:n], self.input, self.snapshots[:, :n])


class Ascent:
    """A batch of pictures of one objective. `step` takes one step of the ascent; `finished` evaluates the pictures."""

    def __init__(
        self,
        network: Subnetwork,
        settings: Settings,
        sees: str,
        objective: Objective,
        starts: Sequence[tuple[Any, ...]],
        group: int = 1,
        references: Tensor | None = None,
    ):
        """Draw the pictures at their random starts.

        `sees`: the size at which the network runs, "canvas" or "model".
        `starts`: one key per picture, which determines its random start together with the seed.
        `group`: the number of consecutive pictures that may share parameters.
        `references`: pictures [m, C, h, w] in 0..1 that the objective compares with. They get the same transforms.
        """
        self.network, self.settings, self.sees, self.objective = network, settings, sees, objective
        self.references = None if references is None else references.to(network.device)
        generators = [_generator(settings.seed, *start) for start in starts]
        self.image = settings.parameterize(generators, network.channels, group, network.device)
        self.optimizer = settings.optimize(self.image)
        self.steps = 0

    def step(self, measured: Objective | None = None) -> Tensor:
        """Take one step. Return the objective of each picture before the step, or `measured` if it is given: [n]."""
        seen = self._seen(self.image())
        values = self.objective(seen)
        self._set_gradients(values.sum())
        if measured is not None and measured is not self.objective:
            with torch.no_grad():
                values = measured(seen)
        del seen  # frees its memory before the optimizer allocates
        self.optimizer.step()
        self.steps += 1
        return values.detach()

    def pixels(self) -> Pixels:
        """Return the pictures as they are now: uint8 [n, H, W, C]."""
        stored = (self.image().detach() * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
        return stored.cpu().numpy()

    @torch.no_grad()
    def finished(self, measured: Objective, snapshots: Sequence[Pixels] = ()) -> Rendering:
        """Evaluate the pictures as they are stored. Pictures with alpha are laid on grey for `values`."""
        images = self.pixels()
        x = torch.from_numpy(images).to(self.network.device).permute(0, 3, 1, 2).float() / 255
        values = measured(self._judged(x, composed if self.settings.alpha else _same))
        keys = [(self.settings.seed, 1, draw) for draw in range(FRESH if self.settings.chain else 0)]
        fresh = [measured(self._judged(x, functools.partial(self._drawn, key=key))) for key in keys]
        mean = torch.stack(fresh).mean(0) if fresh else values
        kept = np.stack(snapshots) if snapshots else np.zeros((0, *images.shape), np.uint8)
        return Rendering(images, values.float().cpu().numpy(), mean.float().cpu().numpy(), self.sees, kept)

    def _set_gradients(self, total: Tensor) -> None:
        if not total.requires_grad:
            raise UsageError(
                "the objective does not change with the picture: between them the network computes without gradients "
                "(detach, no_grad or whole numbers), so no picture can be rendered; choose other layers"
            )
        scale = HALF_SCALE if self.settings.precision == "float16" else 1.0
        gradients = torch.autograd.grad(total * -scale, self.image.parameters)
        for parameter, gradient in zip(self.image.parameters, gradients, strict=True):
            parameter.grad = gradient if scale == 1 else gradient / scale

    def _seen(self, x: Tensor) -> Activations:
        """Run the network on the pictures and the references, both under this step's draw of the transforms."""
        redirect, key = self.steps < self.settings.redirected, (self.settings.seed, self.steps)
        activations = self.network(self._fitted(self._drawn(x, key)), redirect)
        compared: dict[str, Tensor] = {}
        if self.references is not None:
            with torch.no_grad():
                of_references = self.network(self._fitted(self._drawn(self.references, key)))
            compared = {INPUT: self.references, **of_references}
        return Activations({INPUT: x, **activations}, compared, self.network.labels)

    def _judged(self, x: Tensor, move: Callable[[Tensor], Tensor]) -> Activations:
        """Run the network on finished pictures and the references, moved by `move`, at the model's input size."""
        resized = self.network.preprocess.resized
        activations, compared = self.network(resized(move(x))), {}
        if self.references is not None:
            compared = {INPUT: self.references, **self.network(resized(move(self.references)))}
        return Activations({INPUT: x, **activations}, compared, self.network.labels)

    def _drawn(self, x: Tensor, key: tuple[int, ...]) -> Tensor:
        return compose(self.settings.chain, x, np.random.default_rng(key))

    def _fitted(self, x: Tensor) -> Tensor:
        return self.network.preprocess.resized(x) if self.sees == "model" else x


def _same(x: Tensor) -> Tensor:
    return x


def _generator(*key: Any) -> torch.Generator:
    digest = hashlib.sha256("\0".join(str(part) for part in key).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
