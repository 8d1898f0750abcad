"""Rendering with one call: `render` for one objective, `render_units` for many units of a layer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor
from tqdm import tqdm

from pipeline.featurevis import kinds
from pipeline.featurevis.ascent import OnStep, Rendering
from pipeline.featurevis.kinds import DIRECTIONS, Picture
from pipeline.featurevis.objectives import INPUT, Objective, as_objective
from pipeline.featurevis.renderer import Renderer
from pipeline.featurevis.settings import Settings, one_of
from pipeline.graph import Layer
from pipeline.models import Model
from store.errors import UsageError


def render(
    model: Model,
    objective: str | Objective,
    *,
    direction: str = "positive",
    repeats: int | None = None,
    references: Tensor | None = None,
    progress: bool = True,
    **settings: Any,
) -> Rendering:
    """Render pictures of one objective, "LAYER:CHANNEL" or an Objective, in one batch.

    `direction`: "positive" raises the objective, "negative" lowers it.
    `repeats`: the number of pictures (default 1), each from its own random start. An objective with one part per
    picture sets the number itself.
    `references`: pictures [m, C, h, w] in 0..1, for objectives that compare with them.
    `settings`: the fields of `Settings`. By default `batch` is the number of pictures and, if `thresholds` are given,
    `steps` is the largest of them.
    """
    objective = as_objective(objective)
    one_of("direction", direction, DIRECTIONS)
    n = _number(objective, repeats)
    if settings.get("thresholds"):
        settings = {"steps": max(settings["thresholds"]), **settings}
    chosen = Settings(**{"batch": n, **settings})
    fixed = objective.pictures is not None or objective.mixes or chosen.parameterization == "shared"
    if n > chosen.batch or (fixed and n != chosen.batch):
        raise UsageError(f"{n} pictures of {objective} in a batch of {chosen.batch}: leave batch out, or give {n}")
    layers = [_layer(model, name) for name in objective.layers if name != INPUT]
    renderer = Renderer(model, layers, chosen)
    filled = [*range(n), *[n - 1] * (chosen.batch - n)]
    starts = [(text, direction, number) for text, number in _counted(objective, filled)]
    signed = objective if direction == "positive" else -objective
    with tqdm(total=chosen.steps, desc=_short(str(objective)), unit="step", disable=not progress) as bar:
        done = renderer.ascend(
            signed, starts, measured=objective, group=chosen.batch, references=references,
            on_step=lambda step, values: _show(bar, values),
        )  # fmt: skip
    return done.first(n)


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
    """Render every channel in every direction from `repeats` random starts, batch after batch.

    The pictures are ordered by channel, then direction, then repeat. With kind "diversity" and `repeats` 1 there are 4
    pictures per channel and direction. Raises UsageError if there is nothing to render.
    """
    group = kinds.group_of(kind, repeats)
    renderer = Renderer(model, kinds.layers_of(model, layer, kind), settings)
    pictures = [Picture(c, d, r) for c in channels for d in directions for r in range(max(repeats, group))]
    batches = [pictures[i : i + settings.batch] for i in range(0, len(pictures), settings.batch)]
    done = [renderer.render(batch, kind, group, on_step) for batch in batches]
    if not done:
        raise UsageError(f"{layer.name}: there is nothing to render: give at least one channel, direction and repeat")
    return Rendering(
        np.concatenate([d.images for d in done]), np.concatenate([d.values for d in done]),
        np.concatenate([d.transformed for d in done]), renderer.input,
        np.concatenate([d.snapshots for d in done], axis=1),
    )  # fmt: skip


def _number(objective: Objective, repeats: int | None) -> int:
    if repeats is not None and repeats < 1:
        raise UsageError(f"repeats = {repeats}: must be at least 1")
    if objective.pictures is None:
        return repeats or 1
    if repeats not in (None, objective.pictures):
        raise UsageError(f"repeats = {repeats}: {objective} is for {objective.pictures} pictures: leave repeats out")
    return objective.pictures


def _counted(objective: Objective, pictures: Sequence[int]) -> list[tuple[str, int]]:
    """Return (text, occurrence number) of each picture. A picture that pads the batch repeats the last one's."""
    seen: Counter[str] = Counter()
    counted: list[tuple[str, int]] = []
    for position, number in enumerate(pictures):
        if position == number:
            text = objective.text_of(number)
            counted.append((text, seen[text]))
            seen[text] += 1
        else:
            counted.append(counted[number])
    return counted


def _layer(model: Model, name: str) -> Layer:
    layers = model.graph.layers([name])
    if len(layers) != 1:
        raise UsageError(f"{name!r} matches {len(layers)} layers: an objective must name exactly one")
    return layers[0]


def _short(text: str) -> str:
    return text if len(text) <= 40 else text[:37] + "..."


def _show(bar: tqdm[Any], values: Tensor) -> None:
    bar.set_postfix_str(f"{values.mean():.3f}", refresh=False)
    bar.update()
