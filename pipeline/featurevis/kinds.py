"""The kinds of picture that a store keeps. A kind makes an objective from a layer and the channels of the pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.featurevis import objectives
from pipeline.featurevis.objectives import Objective
from pipeline.featurevis.settings import one_of
from pipeline.graph import Layer
from pipeline.models import Model
from store.unit_name import check_channel

KINDS = ("channel", "neuron", "diversity", "deepdream")
DIRECTIONS = {"positive": 1.0, "negative": -1.0}
WHOLE_LAYER = -1  # the channel of a picture that shows a whole layer
DIVERSE = 4  # the number of pictures of a unit that are made to differ
DIVERSITY_WEIGHT = 1.0


@dataclass(frozen=True)
class Picture:
    """One picture to render: its channel, its direction, and the number of its random start."""

    channel: int
    direction: str = "positive"
    repeat: int = 0


def group_of(kind: str, repeats: int = 1) -> int:
    """Return the number of pictures in a group. A group is always rendered in one batch."""
    return (repeats if repeats > 1 else DIVERSE) if kind == "diversity" else 1


def layers_of(model: Model, layer: Layer, kind: str) -> tuple[Layer, ...]:
    """Return the layers whose activations a kind reads. The first is the layer of the pictures."""
    if kind != "diversity" or layer.height * layer.width > 1:
        return (layer,)
    order = {node.name: position for position, node in enumerate(model.graph.module.graph.nodes)}
    before = [
        other for other in model.graph.layers()
        if other.height * other.width > 1 and order[other.node] < order[layer.node]
    ]  # fmt: skip
    return (layer, before[-1]) if before else (layer,)  # a vector has no style, so use the last map before it


def measured(kind: str, layer: Layer, channels: Sequence[int]) -> Objective:
    """Return the objective that evaluates pictures of this kind. Raises UsageError for an unknown kind or channel."""
    one_of("kind", kind, KINDS)
    if kind == "deepdream":
        return objectives.deepdream(layer.name)
    for channel in channels:
        check_channel(layer.name, channel, layer.channels)
    make = objectives.neuron if kind == "neuron" else objectives.channel
    return make(layer.name, tuple(channels))


def ascended(kind: str, layers: Sequence[Layer], pictures: Sequence[Picture], group: int) -> Objective:
    """Return the objective that the optimizer raises.

    It is the measured objective, negated for negative pictures. Kind "diversity" subtracts how alike the pictures are.
    """
    for picture in pictures:
        one_of("direction", picture.direction, DIRECTIONS)
    signs = [DIRECTIONS[p.direction] for p in pictures]
    signed = measured(kind, layers[0], [p.channel for p in pictures]) * signs
    if kind != "diversity":
        return signed
    return signed - DIVERSITY_WEIGHT * objectives.diversity(layers[-1].name, group)


def described(kind: str, layers: Sequence[Layer], channel: int) -> str:
    """Return the objective of a picture in Lucid's notation, which `notation.read` understands."""
    if kind == "deepdream":
        return str(objectives.deepdream(layers[0].name))
    text = measured(kind, layers[0], [channel]).text_of(0)
    return text if kind != "diversity" else f"({text} - {DIVERSITY_WEIGHT:g} * diversity({layers[-1].name}))"
