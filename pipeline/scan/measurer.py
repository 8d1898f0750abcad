"""Measure every unit of the chosen layers in one forward pass of the network, with folded norms and taps."""

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
    """Measure pictures: `pixels` takes uint8 [n, channels, H, W] and returns the statistics of every unit.

    Several threads may call it at once.
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
        self._pieces: fx.GraphModule | None = None  # the stem, which runs on STEM_BATCH pictures at a time
        self._tapped: Callable[[Tensor], object]
        if compile:
            self._tapped = compiled(self.network, self.layers, self._tap)
        else:
            tapped = graph.with_taps(self.network, self.layers, self._tap)
            split = graph.split_stem(tapped, model.graph.sizes()) if self.device.type == "cpu" else None
            self._pieces, self._tapped = split or (None, tapped)
        counts = [np.full(layer.channels, positions(layer, border), np.float64) for layer in self.layers]
        self._positions = np.concatenate(counts)
        self._current = threading.local()  # holds the buffers that this thread's forward pass fills

    def pixels(self, pixels: NDArray[np.uint8] | Tensor) -> BatchStatistics:
        """Run one forward pass. Logits are float32 [n, classes], or None if the chosen layers do not include them."""
        x = pixels if isinstance(pixels, Tensor) else torch.from_numpy(pixels)
        if self.device.type != "cpu":
            x = x.pin_memory().to(self.device, non_blocking=True)
        return self.pictures(x)

    @timed("forward")
    def pictures(self, x: Tensor) -> BatchStatistics:
        """Do the same as `pixels` for pictures [n, channels, H, W] on any device: float in 0..1, or uint8."""
        buffers = self._current.out = empty(len(x), int(self.units.offsets[-1]), self.device)
        with torch.inference_mode():
            logits = self._tapped(self._in_pieces(self._pieces, x, buffers) if self._pieces else self.input(x))
        out = buffers.measured(self._positions)
        check_finite(out, len(x), self.units.name)
        return replace(out, logits=logits.float().cpu().numpy()) if isinstance(logits, Tensor) else out

    def _in_pieces(self, stem: fx.GraphModule, x: Tensor, buffers: Buffers) -> Tensor:
        """Run the stem on STEM_BATCH pictures at a time, and return its output for all pictures."""
        outputs = []
        for first in range(0, len(x), graph.STEM_BATCH):
            self._current.out = buffers.rows(first, first + graph.STEM_BATCH)
            outputs.append(stem(self.input(x[first : first + graph.STEM_BATCH])))
        self._current.out = buffers
        return torch.cat(outputs)

    def input(self, x: Tensor) -> Tensor:
        """Convert pictures (float in 0..1, or uint8) to network input: normalized, on its device, in its format."""
        x = x.to(self.device)
        x = self.model.preprocess.normalize(x.float() / 255 if x.dtype == torch.uint8 else x)
        return x.to(self._dtype).contiguous(memory_format=self.model.graph.memory_format)

    @timed("reduce")
    def _tap(self, layer: Layer, x: Tensor) -> None:
        units, out = self._slices[layer.name], self._current.out
        rows, columns, cut = inner(x.shape[2], x.shape[3], self._border)
        self._reduce(x[:, :, cut : cut + rows, cut : cut + columns] if cut else x, units, layer.signed, out)
        if cut:
            for flat_index in (out.argmax[:, units], out.argmin[:, units]):
                flat_index[:] = (flat_index // columns + cut) * x.shape[3] + flat_index % columns + cut


def positions(layer: Layer, border: int) -> int:
    """Return the number of positions of a layer that its statistics run over: all but the border."""
    rows, columns, _ = inner(layer.height, layer.width, border)
    return rows * columns


def inner(height: int, width: int, border: int) -> tuple[int, int, int]:
    """Return how many rows and columns are left without the border, and the width of the border that is cut.

    Nothing is cut if nothing would be left.
    """
    cut = border if min(height, width) > 2 * border else 0
    return height - 2 * cut, width - 2 * cut, cut


def choose_layers(model: Model, layers: str | Sequence[str] | Sequence[Layer]) -> tuple[Layer, ...]:
    if not isinstance(layers, str) and all(isinstance(layer, Layer) for layer in layers):
        return tuple(layer for layer in layers if isinstance(layer, Layer))
    names = layers if isinstance(layers, str) else [str(name) for name in layers]
    return model.graph.layers(names)


def folded_network(model: Model, layers: Sequence[Layer], arrange: bool = True) -> torch.fx.GraphModule:
    """Return a copy of the traced network in its memory format, with norms folded into convolutions.

    `arrange` also fuses convolutions with their padding and clips, which torch.compile does itself. A convolution that
    is one of the layers keeps its own output: nothing is folded or fused into it.
    """
    wanted = {layer.node for layer in layers}
    folded = graph.fold_norms(model.graph.module, keep=wanted)
    memory_format = model.graph.memory_format
    own = graph.in_memory_format(copy.deepcopy(folded), memory_format)
    return graph.fused(own, wanted, clips=True, memory_format=memory_format) if arrange else own
