"""The kinds of picture a store keeps, each an objective of a layer and the channels that pictures are of."""

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
WHOLE_LAYER = -1  # the channel of a picture that is of a layer
DIVERSE = 4  # pictures of a unit that are made to differ
DIVERSITY_WEIGHT = 1.0


@dataclass(frozen=True)
class Picture:
    """One picture to render: a channel, which way, and which of several random starts."""

    channel: int
    direction: str = "positive"
    repeat: int = 0


def group_of(kind: str, repeats: int = 1) -> int:
    """Pictures that belong together: they share a batch, whole."""
    return (repeats if repeats > 1 else DIVERSE) if kind == "diversity" else 1


def layers_of(model: Model, layer: Layer, kind: str) -> tuple[Layer, ...]:
    """The layers whose activations a kind reads, the pictures' own first."""
    if kind != "diversity" or layer.height * layer.width > 1:
        return (layer,)
    order = {node.name: place for place, node in enumerate(model.graph.module.graph.nodes)}
    before = [
        other for other in model.graph.layers()
        if other.height * other.width > 1 and order[other.node] < order[layer.node]
    ]  # fmt: skip
    return (layer, before[-1]) if before else (layer,)  # a vector has no style: the last map before it has


def measured(kind: str, layer: Layer, channels: Sequence[int]) -> Objective:
    """What a picture of this kind is judged by: one number a picture. Raises UsageError for an unknown channel."""
    one_of("kind", kind, KINDS)
    if kind == "deepdream":
        return objectives.deepdream(layer.name)
    for channel in channels:
        check_channel(layer.name, channel, layer.channels)
    make = objectives.neuron if kind == "neuron" else objectives.channel
    return make(layer.name, tuple(channels))


def ascended(kind: str, layers: Sequence[Layer], pictures: Sequence[Picture], group: int) -> Objective:
    """What the optimizer raises: the measured objective, turned round for negative pictures, less what a kind adds."""
    for picture in pictures:
        one_of("direction", picture.direction, DIRECTIONS)
    signs = [DIRECTIONS[p.direction] for p in pictures]
    signed = measured(kind, layers[0], [p.channel for p in pictures]) * signs
    if kind != "diversity":
        return signed
    return signed - DIVERSITY_WEIGHT * objectives.diversity(layers[-1].name, group)


def described(kind: str, layers: Sequence[Layer], channel: int) -> str:
    """A picture's objective in Lucid's notation."""
    if kind == "deepdream":
        return str(objectives.deepdream(layers[0].name))
    text = measured(kind, layers[0], [channel]).text_of(0)
    return text if kind != "diversity" else f"({text} - {DIVERSITY_WEIGHT:g} * diversity({layers[-1].name}))"
