"""Why the network said what it said about a picture: the part of a picture's page that runs the model."""

from __future__ import annotations

import numpy as np

from query.explanation.explained import Explained
from query.web.answers.panel import Answer, objects, panel

UNITS = 8  # on each side


def why_answer(explained: Explained) -> Answer:
    """Return an explanation as data. `cells` has rows of the map, each value over the largest size."""
    values = explained.values
    units = explained.units
    size = float(np.abs(values.by_position).max()) or 1.0
    target = explained.class_name(values.target)
    other = None if values.against is None else explained.class_name(values.against)
    for_target = objects(units[units["attribution"] > 0].head(UNITS))
    for_other = objects(units[units["attribution"] < 0].tail(UNITS).iloc[::-1])
    against = f"against={values.against}" if values.against is not None else 'against=""'
    python = f"scope.explain({explained.image!r}, {values.target}, {against}, layer={explained.layer.name!r})"
    return {
        "title": explained.title,
        "layer": explained.layer.name,
        "target": target,
        "target_index": values.target,
        "against": other,
        "against_index": values.against,
        "score": values.score,
        "baseline_score": values.baseline_score,
        "sentences": explained.sentences,
        "cells": (values.by_position / size).round(4).tolist(),
        "spatial": explained.layer.has_places,
        "panels": {
            "for": panel(
                f"For {target}", "Units of this layer by what they add to the score.", for_target, python=python
            ),
            "against": panel(f"For {other}" if other else "Against it", "Units that take from the score.", for_other),
            "groups": panel("Units that fire together here", "Neuron groups of this picture.", _groups(explained)),
        },
    }


def _groups(explained: Explained) -> list[Answer]:
    values = explained.values
    _, height, width = values.activations.shape
    rows = objects(explained.groups)
    for row, strength, units in zip(rows, values.groups.strength.T, explained.units_of_groups(4), strict=True):
        largest = float(strength.max()) or 1.0
        row["channels"] = units
        row["cells"] = (strength.reshape(height, width) / largest).round(3).tolist()
    return rows
