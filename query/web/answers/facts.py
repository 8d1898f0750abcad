"""What several pages say of a run, a layer or a unit."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from query.presentation.unit_text import receptive_field
from query.questions.unit_states import unit_states
from query.record.run_tables import Layer, Run
from query.web.answers.panel import Answer

STATES = ("dead", "always on", "clipped")


def of_run(run: Run) -> Answer:
    return {
        "run": run.name,
        "model": run.model,
        "dataset": run.dataset,
        "n": run.n,
        "input_height": run.input_size[0],
        "input_width": run.input_size[1],
    }


def of_layer(layer: Layer) -> Answer:
    return {
        "layer": layer.name,
        "op": layer.op,
        "channels": layer.channels,
        "height": layer.height,
        "width": layer.width,
        "spatial": layer.spatial,
        "signed": layer.signed,
        "upper_bound": layer.upper_bound,
        "sees": receptive_field(layer),
    }


def states(run: Run, layer: Layer) -> dict[int, str]:
    """Return the state of each channel of a layer that has one: dead, always on or clipped."""
    frame = unit_states(run, np.arange(layer.start, layer.stop))
    return dict(zip(frame["channel"].tolist(), frame["state"].tolist(), strict=True))


def trust(row: dict[str, Any], channels: int) -> Answer:
    """Return how far a feature visualization can be trusted, as numbers and in words.

    `row` is of `visualizations`; `channels` is how many units the layer has.
    """
    ratio, rank, beats = row["value_vs_best_example"], row["rank_in_layer"], row["beats_median"]
    words = []
    if ratio is not None:
        words.append({"good": ratio >= 1, "number": f"{ratio:.2g}×", "text": "the value on its best photograph"})
    if rank is not None:
        words.append(
            {
                "good": rank <= min(10, max(channels // 20, 1)),
                "number": ordinal(rank),
                "text": "of its layer's units on its own picture",
            }
        )
    if beats is not None:
        above = "above" if beats else "not above"
        words.append({"good": bool(beats), "number": "", "text": f"{above} its median photograph"})
    return {"words": words}


def ordinal(number: int) -> str:
    ending = "th" if 10 <= number % 100 <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number:,}{ending}"


def previous_and_next(index: int, count: int) -> tuple[int | None, int | None]:
    return (index - 1 if index > 0 else None), (index + 1 if index + 1 < count else None)


def counts(values: NDArray[np.float64], bins: int = 40) -> list[Answer]:
    """Return a histogram of finite values: low, high, count."""
    values = values[np.isfinite(values)]
    if not len(values):
        return []
    heights, edges = np.histogram(values, bins)
    return [
        {"low": float(low), "high": float(high), "count": int(count)}
        for low, high, count in zip(edges[:-1], edges[1:], heights, strict=True)
    ]
