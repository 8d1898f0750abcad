"""The part of a network that a visualization runs: it maps pictures in 0..1 to the activations of some layers."""

from __future__ import annotations

import copy
import linecache
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from pipeline.compat.fx import kept_sources
from pipeline.featurevis.redirect import redirected
from pipeline.featurevis.transforms import Size
from pipeline.graph import Layer, fold_norms, fused, in_memory_format, truncated
from pipeline.models import Model


class Subnetwork:
    """A copy of the network from its input to the layers, with batch norms folded and in the model's memory format.

    The model's own network is never changed. `preprocess` replaces the model's normalization. `dtype` is the number
    type in which the copy computes.
    """

    def __init__(
        self,
        model: Model,
        layers: Sequence[Layer],
        preprocess: Callable[[Tensor], Tensor] | None = None,
        dtype: torch.dtype = torch.float32,
    ):
        self.layers = tuple(layers)
        self.preprocess = model.preprocess
        self.normalize = preprocess or model.preprocess.normalize
        self.labels = model.labels
        self.channels, self.dtype = model.graph.input_shape[1], dtype
        self.memory_format = model.graph.memory_format
        self.device = next((p.device for p in model.network.parameters()), torch.device("cpu"))
        with _no_sources_kept():
            wanted = {layer.node for layer in layers}
            cut = fold_norms(truncated(model.graph.module, layers), wanted)
            own = in_memory_format(copy.deepcopy(cut), self.memory_format).requires_grad_(False).to(dtype)
            self.plain = fused(own, wanted, clips=True, memory_format=self.memory_format)
            # Clips are not fused here: redirected ones have their own gradient.
            self.redirected = redirected(fused(own, wanted, clips=False, memory_format=self.memory_format))

    def __call__(self, x: Tensor, redirect: bool = False) -> dict[str, Tensor]:
        """Return the activations of each layer, float32 [n, C, H, W], on pictures [n, channels, h, w] in 0..1."""
        if not self.layers:
            return {}
        x = self.normalize(x).to(self.dtype, memory_format=self.memory_format)
        outputs: tuple[Tensor, ...] = (self.redirected if redirect else self.plain).forward(x)
        return {layer.name: y.float() for layer, y in zip(self.layers, outputs, strict=True)}

    def takes(self, sizes: Iterable[Size]) -> bool:
        """Return whether the network runs on pictures of each of these sizes."""
        return all(self._takes(size) for size in sizes)

    @torch.inference_mode()
    def _takes(self, size: Size) -> bool:
        try:
            activations = self(torch.full((1, self.channels, *size), 0.5, device=self.device))
        except (RuntimeError, AssertionError, ValueError):  # position tables, windows or views of a fixed shape
            return False
        return all(
            x.ndim == 4 and x.shape[:2] == (1, layer.channels) and x.numel() > 0
            for layer, x in zip(self.layers, activations.values(), strict=True)
        )


@contextmanager
def _no_sources_kept() -> Iterator[None]:
    """Discard the sources of the graphs that fx compiles inside this context.

    fx keeps the source of every graph it compiles, for tracebacks, until the process ends. Without this, a session
    grows by a hundred kilobytes per render.
    """
    kept = kept_sources()
    before = set(kept)
    try:
        yield
    finally:
        for key in set(kept) - before:
            kept.pop(key, None)
            linecache.cache.pop(key, None)
