"""The renderer: it renders batches of pictures of some layers with one prepared network and one set of settings.

A picture depends on its own objective, the settings, the number of its random start, and the batch size. It never
depends on the other pictures of its batch, unless the objective or the parameterization makes a group of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from pipeline.featurevis import kinds
from pipeline.featurevis.ascent import Ascent, OnStep, Pixels, Rendering
from pipeline.featurevis.kinds import Picture
from pipeline.featurevis.objectives import Objective
from pipeline.featurevis.settings import Settings
from pipeline.featurevis.subnetwork import Subnetwork
from pipeline.featurevis.transforms import sizes
from pipeline.graph import Layer
from pipeline.models import Model
from pipeline.runtime.devices import DTYPES
from store.errors import UsageError


class Renderer:
    """What all pictures of some layers share: the prepared network and the settings.

    `input` is the size at which the network runs. It is "model" instead of the setting "canvas" if the network cannot
    run at every size that the transforms can give the canvas.
    """

    def __init__(self, model: Model, layers: Layer | Sequence[Layer], settings: Settings):
        self.layers = (layers,) if isinstance(layers, Layer) else tuple(layers)
        self.settings = settings
        self.network = Subnetwork(model, self.layers, settings.preprocess, DTYPES[settings.precision])
        fits = settings.input == "canvas" and self.network.takes(sorted(sizes(settings.chain, settings.canvas)))
        self.input = "canvas" if fits else "model"

    def render(
        self,
        pictures: Sequence[Picture],
        kind: str = "channel",
        group: int = 1,
        on_step: OnStep | None = None,
        batch: int = 0,
    ) -> Rendering:
        """Render one batch: 1 to `batch` pictures, in whole groups. Raises UsageError for other numbers.

        `batch` is `settings.batch` if it is not given. It is padded with copies of the last group, which are not
        returned.
        """
        n, size = len(pictures), batch or self.settings.batch
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
        """Render one picture per key in `starts`, which determines its random start together with the seed.

        `measured`: the objective to report, by default `objective`.
        `group`: the number of consecutive pictures that may share parameters.
        `references`: pictures [m, C, h, w] in 0..1 that the objective compares with. They get the same transforms.
        `on_step`: called after each step.
        """
        measured, snapshots = measured or objective, list[Pixels]()
        ascent = self.begin(objective, starts, group, references)
        if 0 in self.settings.thresholds:
            snapshots.append(ascent.pixels())
        for step in range(self.settings.steps):
            values = ascent.step(measured if on_step is not None else None)
            if on_step is not None:
                on_step(step, values)
            if step + 1 in self.settings.thresholds:
                snapshots.append(ascent.pixels())
        return ascent.finished(measured, snapshots)

    def begin(
        self,
        objective: Objective,
        starts: Sequence[tuple[Any, ...]],
        group: int = 1,
        references: Tensor | None = None,
    ) -> Ascent:
        """Return the batch that `ascend` renders, before its first step."""
        return Ascent(self.network, self.settings, self.input, objective, starts, group, references)
