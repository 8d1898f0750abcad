"""Objectives: what a picture is optimized for. They add, subtract and scale: `channel("a", 3) - 1e-3 * L1()`."""

from pipeline.featurevis.objectives.batches import alignment, diversity
from pipeline.featurevis.objectives.directions import (
    direction,
    direction_cossim,
    direction_neuron,
    dot_compare,
    tensor_direction,
)
from pipeline.featurevis.objectives.notation import as_objective
from pipeline.featurevis.objectives.objective import INPUT, Activations, Objective
from pipeline.featurevis.objectives.penalties import (
    L1,
    L2,
    blur_alpha_each_step,
    blur_input_each_step,
    input_diff,
    penalize_boundary_complexity,
    total_variation,
)
from pipeline.featurevis.objectives.units import (
    Channels,
    channel,
    channel_interpolate,
    class_logit,
    deepdream,
    neuron,
    parse,
)

__all__ = [
    "INPUT", "L1", "L2", "Activations", "Channels", "Objective", "alignment", "as_objective", "blur_alpha_each_step",
    "blur_input_each_step", "channel", "channel_interpolate", "class_logit", "deepdream", "direction",
    "direction_cossim", "direction_neuron", "diversity", "dot_compare", "input_diff", "neuron", "parse",
    "penalize_boundary_complexity", "tensor_direction", "total_variation",
]  # fmt: skip
