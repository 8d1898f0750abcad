"""Rendering with one call: `render` for an objective, `render_units` for many units of a layer."""

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
    """Pictures of one objective, "LAYER:CHANNEL" or an Objective, in one batch.

    An objective that is for several pictures gives each its own; another gives `repeats` (1) from as many random
    starts. `settings` are the fields of `Settings`; `batch` is the number of pictures, unless given, and `steps` the
    last of `thresholds`. `references`: pictures [m, C, h, w] in 0..1, for objectives that compare with them.
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
    """Every channel in every direction from `repeats` random starts, in that order of nesting, batch after batch."""
    group = kinds.group_of(kind, repeats)
    renderer = Renderer(model, kinds.layers_of(model, layer, kind), settings)
    pictures = [Picture(c, d, r) for c in channels for d in directions for r in range(max(repeats, group))]
    batches = [pictures[i : i + settings.batch] for i in range(0, len(pictures), settings.batch)]
    done = [renderer.render(batch, kind, group, on_step) for batch in batches]
    if not done:
        raise UsageError(f"{layer.name}: no picture asked for: give channels, directions and repeats")
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
        raise UsageError(f"repeats = {repeats}: {objective} is for {objective.pictures} pictures")
    return objective.pictures


def _counted(objective: Objective, pictures: Sequence[int]) -> list[tuple[str, int]]:
    """Each picture's text, and the how manieth of that text it is; fillers are what they repeat."""
    seen: Counter[str] = Counter()
    found: list[tuple[str, int]] = []
    for place, number in enumerate(pictures):
        if place == number:
            text = objective.text_of(number)
            found.append((text, seen[text]))
            seen[text] += 1
        else:
            found.append(found[number])
    return found


def _layer(model: Model, name: str) -> Layer:
    found = model.graph.layers([name])
    if len(found) != 1:
        raise UsageError(f"{name!r} matches {len(found)} layers: an objective names one")
    return found[0]


def _short(text: str) -> str:
    return text if len(text) <= 40 else text[:37] + "..."


def _show(bar: tqdm[Any], values: Tensor) -> None:
    bar.set_postfix_str(f"{values.mean():.3f}", refresh=False)
    bar.update()
