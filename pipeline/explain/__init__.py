"""The Building Blocks of Interpretability: how a network's output comes from the units and positions of a layer."""

from pipeline.explain.attribution import METHODS, Attribution, ablated, attribute, replaced
from pipeline.explain.explanation import Explanation, explain
from pipeline.explain.groups import Groups, matched, neuron_groups
from pipeline.explain.suffix import State, Suffix, Target

__all__ = [
    "METHODS", "Attribution", "Explanation", "Groups", "State", "Suffix", "Target", "ablated", "attribute", "explain",
    "matched", "neuron_groups", "replaced",
]  # fmt: skip
