"""The suffix of a network: the part from a layer to the logits, as a plain module that runs on the layer's values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.graph import Layer
from pipeline.graph.nested import with_tensors
from pipeline.graph.splitting import split
from pipeline.models import Model
from pipeline.scan.measurer import folded_network
from store.errors import UsageError

AT_ONCE = 32  # rows that run through a suffix together


@dataclass(frozen=True)
class Target:
    """What is explained, one per picture: the logit of a class, or that logit minus the logit of another class.

    `classes` and `against` are int64 [N]; `against` is None for the logit alone.
    """

    classes: Tensor
    against: Tensor | None = None

    def score(self, logits: Tensor, pictures: Tensor) -> Tensor:
        """Return the score of each row of logits [n, classes]: [n]. `pictures` int64 [n] says whose row each is."""
        score = logits.gather(1, self.classes[pictures, None])[:, 0]
        return score if self.against is None else score - logits.gather(1, self.against[pictures, None])[:, 0]


@dataclass(frozen=True)
class State:
    """What a network has computed up to a layer, for N pictures.

    `value` is the layer's node as the network has it, float32 [N, ...]; `beside` is what else the suffix needs, such as
    a residual branch around the layer. It stays as it is on the picture, whatever is done to the value.
    """

    value: Tensor
    beside: tuple[Any, ...]

    def __len__(self) -> int:
        return len(self.value)


class Suffix:
    """A network in two parts, before and after one layer, with batch norms folded into convolutions.

    `module` is the second part: it maps a list, the layer's value and what else it needs, to logits. It has no hooks,
    so operations in place and modules that are used twice are as in the network. Gradients flow to its input alone.
    Raises UsageError if the network has no logits, or if they do not depend on the layer.
    """

    def __init__(self, model: Model, layer: Layer) -> None:
        if model.graph.logits is None:
            raise UsageError(f"model {model.name} has no logits to explain: {model.graph.no_logits}")
        self.model, self.layer = model, layer
        network = folded_network(model, [layer]).requires_grad_(False)
        try:
            parts = split(network, [layer.node])
        except UsageError as error:
            raise UsageError(f"layer {layer.name} cannot be explained: {error}") from error
        self.prefix, self.module = parts.prefix, parts.rest
        # What follows from the number of rows alone is computed for each such number; the rest is of the pictures.
        self._follows = [name in model.graph.sized for name in parts.beside]
        self._for_rows: dict[int, list[Any]] = {}

    def state(self, pixels: Tensor) -> State:
        """Run the network up to the layer. `pixels`: pictures [N, channels, H, W], uint8 or float in 0..1."""
        x = pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels
        x = self.model.preprocess.normalize(x).contiguous(memory_format=self.model.graph.memory_format)
        with torch.no_grad():
            value, *beside = self.prefix(x)
        return State(value, tuple(beside))

    def logits(self, state: State, value: Tensor, pictures: Tensor) -> Tensor:
        """Return the logits float32 [n, classes] for values [n, ...] in the place of the layer's own.

        `pictures` int64 [n] says which picture of `state` each row belongs to.
        """
        return self.module([self.arranged(value), *self.beside(state, pictures)])

    def arranged(self, value: Tensor) -> Tensor:
        """Return maps in the memory format in which the network runs best."""
        return value.contiguous(memory_format=self.model.graph.memory_format) if value.ndim == 4 else value

    def beside(self, state: State, pictures: Tensor) -> list[Any]:
        """Return what else the suffix needs, for rows that belong to these pictures."""
        follow = self._computed_for(len(pictures)) if any(self._follows) else state.beside
        return [
            of_rows if follows else with_tensors(of_pictures, lambda x: x[pictures])
            for follows, of_rows, of_pictures in zip(self._follows, follow, state.beside, strict=True)
        ]

    def _computed_for(self, rows: int) -> list[Any]:
        """Return what leads around the layer, for a number of rows: sizes, and tables that follow from sizes."""
        if rows not in self._for_rows:
            x = torch.zeros(rows, *self.model.graph.input_shape[1:])
            with torch.no_grad():
                _, *around = self.prefix(x.contiguous(memory_format=self.model.graph.memory_format))
            self._for_rows[rows] = [x if follows else None for follows, x in zip(self._follows, around, strict=True)]
        return self._for_rows[rows]

    def as_module(self, state: State) -> nn.Module:
        """Return the suffix as a module of one input, the layer's value, for other programs to explain.

        Its rows belong to the pictures of `state` in turn: row i to picture i % N.
        """
        return _OneInput(self, state)

    def map(self, values: Tensor) -> Tensor:
        """Return values that are laid out as the layer's node as [n, C, H, W]."""
        return self.layer.to_nchw(values)

    def with_map(self, values: Tensor, maps: Tensor) -> Tensor:
        """Return the node's values, [1 or n, ...], with those of the layer replaced by maps [n, C, H, W].

        Other values of the node, such as class tokens, stay as they are.
        """
        layout = self.layer.layout
        if layout.kind == "nchw" and not layout.digits:  # the layer is all that the node has
            return maps
        rows = values.expand(len(maps), *values.shape[1:]).clone(memory_format=torch.contiguous_format)
        place = self.map(torch.arange(values[0].numel()).reshape(1, *values.shape[1:])).reshape(-1)
        rows.flatten(1)[:, place] = maps.flatten(1)
        return rows


class _OneInput(nn.Module):
    def __init__(self, suffix: Suffix, state: State) -> None:
        super().__init__()
        self.suffix, self.state = suffix, state

    def forward(self, value: Tensor) -> Tensor:
        return self.suffix.logits(self.state, value, torch.arange(len(value)) % len(self.state))
