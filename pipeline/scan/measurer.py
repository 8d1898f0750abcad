"""One forward pass for everything: the folded, tapped network that measures every unit of the chosen layers."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx

from pipeline import graph
from pipeline.graph import Layer
from pipeline.graph.compile import compiled
from pipeline.models import Model
from pipeline.runtime.devices import DTYPES
from pipeline.runtime.timing import timed
from pipeline.scan.batch_statistics import BatchStatistics, Buffers, UnitIndex, check_finite, empty
from pipeline.scan.reduce import choose


class Measurer:
    """Measures pictures: `pixels` takes uint8 [n, channels, H, W] and returns every unit's statistics.

    May be called from several threads at once.
    """

    def __init__(
        self,
        model: Model,
        layers: str | Sequence[str] | Sequence[Layer] = "blocks",
        *,
        device: str = "cpu",
        precision: str = "float32",
        border: int = 0,
        compile: bool = False,
    ) -> None:
        self.model = model
        self.layers = choose_layers(model, layers)
        self.units = UnitIndex(self.layers)
        self._slices = {layer.name: self.units.slice(i) for i, layer in enumerate(self.layers)}
        self.device, self._dtype, self._border = torch.device(device), DTYPES[precision], border
        self._reduce = choose(self.device.type)
        self.network = folded_network(model, self.layers, arrange=not compile).to(device=self.device, dtype=self._dtype)
        self._pieces: fx.GraphModule | None = None  # what runs on a few pictures at a time
        self._tapped: Callable[[Tensor], object]
        if compile:
            self._tapped = compiled(self.network, self.layers, self._tap)
        else:
            tapped = graph.with_taps(self.network, self.layers, self._tap)
            found = graph.split_stem(tapped, model.graph.sizes()) if self.device.type == "cpu" else None
            self._pieces, self._tapped = found or (None, tapped)
        counts = [np.full(layer.channels, positions(layer, border), np.float64) for layer in self.layers]
        self._positions = np.concatenate(counts)
        self._current = threading.local()  # what this thread's forward pass fills

    def pixels(self, pixels: NDArray[np.uint8] | Tensor) -> BatchStatistics:
        """One forward pass; logits are float32 [n, classes] where the chosen layers reach the output."""
        x = pixels if isinstance(pixels, Tensor) else torch.from_numpy(pixels)
        if self.device.type != "cpu":
            x = x.pin_memory().to(self.device, non_blocking=True)
        return self.pictures(x)

    @timed("forward")
    def pictures(self, x: Tensor) -> BatchStatistics:
        """The same for float pictures [n, channels, H, W] in 0..1, or uint8."""
        buffers = self._current.out = empty(len(x), int(self.units.offsets[-1]), self.device)
        with torch.inference_mode():
            logits = self._tapped(self._in_pieces(self._pieces, x, buffers) if self._pieces else self.input(x))
        out = buffers.measured(self._positions)
        check_finite(out, len(x), self.units.name)
        return replace(out, logits=logits.float().cpu().numpy()) if isinstance(logits, Tensor) else out

    def _in_pieces(self, first_half: fx.GraphModule, x: Tensor, buffers: Buffers) -> Tensor:
        """What the first half hands on."""
        found = []
        for first in range(0, len(x), graph.STEM_BATCH):
            self._current.out = buffers.rows(first, first + graph.STEM_BATCH)
            found.append(first_half(self.input(x[first : first + graph.STEM_BATCH])))
        self._current.out = buffers
        return torch.cat(found)

    def input(self, x: Tensor) -> Tensor:
        """Pictures in 0..1, or uint8 -> what the network takes, on its device, channels last."""
        x = x.to(self.device)
        x = self.model.preprocess.normalize(x.float() / 255 if x.dtype == torch.uint8 else x)
        return x.to(self._dtype).contiguous(memory_format=torch.channels_last)

    @timed("reduce")
    def _tap(self, layer: Layer, x: Tensor) -> None:
        units, out = self._slices[layer.name], self._current.out
        rows, columns, cut = inner(x.shape[2], x.shape[3], self._border)
        self._reduce(x[:, :, cut : cut + rows, cut : cut + columns] if cut else x, units, layer.signed, out)
        if cut:
            for place in (out.argmax[:, units], out.argmin[:, units]):
                place[:] = (place // columns + cut) * x.shape[3] + place % columns + cut


def positions(layer: Layer, border: int) -> int:
    """Positions of a layer that statistics run over, the border left out."""
    rows, columns, _ = inner(layer.height, layer.width, border)
    return rows * columns


def inner(height: int, width: int, border: int) -> tuple[int, int, int]:
    """Rows and columns left when a border is cut off, and the cut: 0 where nothing would be left."""
    cut = border if min(height, width) > 2 * border else 0
    return height - 2 * cut, width - 2 * cut, cut


def choose_layers(model: Model, layers: str | Sequence[str] | Sequence[Layer]) -> tuple[Layer, ...]:
    if not isinstance(layers, str) and all(isinstance(layer, Layer) for layer in layers):
        return tuple(layer for layer in layers if isinstance(layer, Layer))
    names = layers if isinstance(layers, str) else [str(name) for name in layers]
    return model.graph.layers(names)


def folded_network(model: Model, layers: Sequence[Layer], arrange: bool = True) -> torch.fx.GraphModule:
    """A copy of the traced network, channels last: norms folded, convolutions arranged for inference (which a compiler
    does itself). A convolution whose own output is wanted keeps to itself."""
    wanted = {layer.node for layer in layers}
    folded = graph.fold_norms(model.graph.module, keep=wanted)
    own = copy.deepcopy(folded).to(memory_format=torch.channels_last)
    return graph.fused(own, keep=wanted, clips=True) if arrange else own
