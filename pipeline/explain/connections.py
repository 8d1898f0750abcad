"""What feeds a unit: the weights that lead to it from the units of the layers before it, and what each adds to it.

Source: Voss et al., Visualizing Weights, Distill 2021, and Lucid's expanded weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx

from pipeline.explain.linear_path import Mode, linear_steps
from pipeline.graph import Layer
from pipeline.graph.splitting import split
from pipeline.models import Model
from pipeline.scan.measurer import folded_network
from store.errors import UsageError

UNITS_AT_ONCE = 64  # whose weights are computed together
PROBED = 8  # units whose weights on a small map are compared with those on the whole one
SMALL_MAPS = (1, 3, 5, 7)  # heights and widths of the fed layer's map that are tried before its own
AGREE = 1e-5  # how closely weights on a small map must agree with those on the whole one


@dataclass(frozen=True)
class Source:
    """A layer that feeds another through none of the run's other layers. `way`: what lies between, in words."""

    layer: Layer
    way: str


@dataclass(frozen=True)
class Weights:
    """A unit's weights to the C units of one source: float64 [C], over all positions of the source's map.

    `length` is the L2 norm and `total` the sum.
    """

    length: NDArray[np.float64]
    total: NDArray[np.float64]


@dataclass(frozen=True)
class Contributions:
    """What each unit of the sources added to one unit's value at one position of one picture.

    `value` is that value before the unit's own activation. `of`: for each source, float64 [C]. `elsewhere` comes from
    values of the same nodes that belong to no source, such as class tokens. `bias` is what the way there adds by
    itself: biases, and what is not followed. These parts add up to the value, but for rounding.
    """

    value: float
    bias: float
    elsewhere: float
    of: tuple[NDArray[np.float64], ...]

    @property
    def residue(self) -> float:
        """What all parts add up to, minus the value."""
        return self.bias + self.elsewhere + sum(float(part.sum()) for part in self.of) - self.value


class Wiring:
    """What feeds what among the layers of a run. The network is prepared once for all of them."""

    def __init__(self, model: Model, layers: Sequence[Layer]) -> None:
        self.model, self.layers = model, tuple(layers)
        self._edges = model.graph.edges(self.layers)
        # On the processor, wherever the model is: what is multiplied is small.
        self._network = folded_network(model, self.layers, arrange=False).requires_grad_(False).to("cpu")

    def to(self, target: Layer) -> Connections:
        """Return the linear ways that lead to a layer."""
        names = {source for source, fed in self._edges if fed == target.name}
        return Connections(self.model, self._network, [x for x in self.layers if x.name in names], target)


class Connections:
    """The linear ways to the layer `target` from the layers that feed it.

    `sources` are those that feed it in a linear way; it is empty if only the picture does.
    """

    def __init__(self, model: Model, network: fx.GraphModule, feeding: Sequence[Layer], target: Layer) -> None:
        self.model, self.target = model, target
        self.sources: tuple[Source, ...] = ()
        if not feeding:
            return
        nodes = list(dict.fromkeys(layer.node for layer in feeding))
        parts = split(network, nodes, target.node)
        self._prefix, self._alone = parts.prefix, not parts.beside
        self._steps = linear_steps(parts.rest, len(nodes), model.graph.sizes())
        ways = dict(zip(nodes, self._steps.ways, strict=True))
        self.places = {layer.name: nodes.index(layer.node) for layer in feeding}
        self.sources = tuple(Source(layer, ways[layer.node]) for layer in feeding if ways[layer.node])

    def weights(self) -> Iterator[tuple[int, list[Weights]]]:
        """Yield each unit of the target with its expanded weights, one entry per source.

        They are the weights of the unit in the middle of its map. Where the middle of a small map has the same weights,
        they are computed on a small map.
        """
        if not self.sources:
            return
        self._steps.modes.mode = Mode.EXPAND
        whole = self._run(self._values(torch.zeros(1, *self.model.graph.input_shape[1:])))
        block = list(range(min(PROBED, self.target.channels)))
        known = self._block(whole, block)
        chosen = next(
            (small for small in self._small_maps(whole[0]) if _agree(self._block(small, block), known)), whole
        )
        for first in range(0, self.target.channels, UNITS_AT_ONCE):
            units = list(range(first, min(first + UNITS_AT_ONCE, self.target.channels)))
            found = self._block(chosen, units)
            for row, channel in enumerate(units):
                yield channel, [Weights(length[row].numpy(), total[row].numpy()) for length, total in found]

    def _small_maps(self, whole: list[Tensor]) -> Iterator[tuple[list[Tensor], Tensor]]:
        """Yield the linear map on small maps, if nothing else than maps of a whole number of positions goes into it."""
        height, width = self.target.height, self.target.width
        sources = [source.layer for source in self.sources]
        by_place = {self.places[layer.name]: layer for layer in sources}
        plain = all(x.layout.kind in ("nchw", "vector") and not x.layout.digits for x in (*sources, self.target))
        whole_steps = all(not (x.height % height or x.width % width) for x in sources)
        if not (self._alone and plain and whole_steps and len(by_place) == len(whole)):
            return
        for side in SMALL_MAPS:
            if side >= min(height, width):
                return
            values: list[object] = [
                x.new_zeros(UNITS_AT_ONCE, x.shape[1], side * (layer.height // height), side * (layer.width // width))
                for x, layer in zip(whole, (by_place[place] for place in range(len(whole))), strict=True)
            ]
            try:
                yield self._run(values)
            except RuntimeError:  # some step needs the whole map
                return

    def _block(self, run: tuple[list[Tensor], Tensor], units: list[int]) -> list[tuple[Tensor, Tensor]]:
        """Return the length and the sum of some units' weights: for each source, float64 [units, C] twice."""
        followed, end = run
        maps = self.target.to_nchw(end)
        row, column = maps.shape[2] // 2, maps.shape[3] // 2
        if len(maps) > 1:  # a row for each unit
            picked = maps[range(len(units)), units, row, column].sum()
            gradients = torch.autograd.grad(picked, followed, retain_graph=True, materialize_grads=True)
        else:
            gradients = torch.autograd.grad(
                maps[0, units, row, column], followed, torch.eye(len(units)), is_grads_batched=True, retain_graph=True,
                materialize_grads=True,
            )  # fmt: skip
            gradients = tuple(of_units.flatten(0, 1) for of_units in gradients)
        found = []
        for source in self.sources:
            of_units = gradients[self.places[source.layer.name]][: len(units)]
            maps = source.layer.to_nchw(of_units).double()
            found.append((maps.square().sum((2, 3)).sqrt(), maps.sum((2, 3))))
        return found

    def on_picture(self, pixels: NDArray[np.uint8]) -> OnPicture:
        """Return what each source adds on one picture, uint8 [channels, H, W]."""
        if not self.sources:
            raise UsageError(f"no layer of the run feeds {self.target.name} in a linear way")
        x = torch.from_numpy(pixels[None]).float() / 255
        values = self._values(self.model.preprocess.normalize(x))
        self._steps.modes.mode = Mode.RECORD
        with torch.no_grad():
            value = self.target.to_nchw(self._steps.module(values))[0].clone()
        self._steps.modes.mode = Mode.REPLAY
        count = len(self._steps.ways)
        with torch.no_grad():
            nothing = [torch.zeros_like(v) for v in values[:count]]
            bias = self.target.to_nchw(self._steps.module([*nothing, *values[count:]]))[0].clone()
        followed, end = self._run(values)
        return OnPicture(self, value, bias, followed, values[count:], self.target.to_nchw(end)[0])

    def replay(self, values: Sequence[Any]) -> Tensor:
        """Run the linear map of the last picture on other values of the nodes at which the network is cut."""
        self._steps.modes.mode = Mode.REPLAY
        found: Tensor = self._steps.module(list(values))
        return found

    def _values(self, x: Tensor) -> list[Any]:
        with torch.no_grad():
            found: list[Any] = self._prefix(x.contiguous(memory_format=self.model.graph.memory_format))
        return found

    def _run(self, values: Sequence[Any]) -> tuple[list[Tensor], Tensor]:
        """Run the linear map so that gradients reach the sources. Returns these and the end's value."""
        count = len(self._steps.ways)
        followed = [value.detach().clone().requires_grad_() for value in values[:count]]
        with torch.enable_grad():
            end = self._steps.module([*followed, *values[count:]])
        return followed, end


def _agree(found: list[tuple[Tensor, Tensor]], known: list[tuple[Tensor, Tensor]]) -> bool:
    """Whether weights have the same lengths and sums, but for rounding."""
    pairs = [(a, b) for one, other in zip(found, known, strict=True) for a, b in zip(one, other, strict=True)]
    return all(bool((a - b).abs().max() <= AGREE * b.abs().max()) for a, b in pairs)


@dataclass(frozen=True)
class OnPicture:
    """The way to a layer on one picture. `value` and `bias`, [C, H, W], are those of `Contributions` for each unit."""

    connections: Connections
    value: Tensor
    bias: Tensor
    followed: list[Tensor]
    beside: list[Any]
    end: Tensor

    def run(self, values: Sequence[Tensor]) -> Tensor:
        """Return what the layer would have, [C, H, W], if the sources' nodes had these values, all else as it was."""
        return self.connections.target.to_nchw(self.connections.replay([*values, *self.beside]))[0]

    def strongest(self, channel: int) -> tuple[int, int]:
        """Return the row and column of a unit's first maximum."""
        at = int(self.value[channel].flatten().argmax())
        return at // self.value.shape[2], at % self.value.shape[2]

    def contributions(self, channel: int, y: int, x: int) -> Contributions:
        """Return what each unit of the sources added to one unit at one position of its map."""
        here = self.end[channel, y, x]
        gradients = torch.autograd.grad(here, self.followed, retain_graph=True, materialize_grads=True)
        added = [
            (gradient.double() * values.detach().double())[:1]
            for gradient, values in zip(gradients, self.followed, strict=True)
        ]
        of = tuple(
            source.layer.to_nchw(added[self.connections.places[source.layer.name]])[0].sum((1, 2)).numpy()
            for source in self.connections.sources
        )
        elsewhere = sum(float(part.sum()) for part in added) - sum(float(part.sum()) for part in of)
        return Contributions(float(self.value[channel, y, x]), float(self.bias[channel, y, x]), elsewhere, of)
