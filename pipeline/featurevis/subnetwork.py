"""The part of a network that a visualization runs: from pictures in 0..1 to one layer's activations."""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from torch import Tensor

from pipeline.graph import Layer, fold_norms, truncated
from pipeline.models import Model

from .redirect import redirected


class Subnetwork:
    """Input to layer, norms folded, channels last, in a copy: the model's own network is never changed."""

    def __init__(self, model: Model, layer: Layer):
        self.preprocess = model.preprocess
        self.layer = layer
        self.channels = model.graph.input_shape[1]
        folded = fold_norms(truncated(model.graph.module, layer), {layer.node})
        self.plain = copy.deepcopy(folded).to(memory_format=torch.channels_last).requires_grad_(False)
        self.redirected = redirected(self.plain)
        self.device = next((p.device for p in model.network.parameters()), torch.device("cpu"))

    def __call__(self, x: Tensor, redirect: bool = False) -> Tensor:
        """Activations [n, C, H, W] of pictures [n, channels, h, w] in 0..1."""
        x = self.preprocess.normalize(x).contiguous(memory_format=torch.channels_last)
        activations: Tensor = (self.redirected if redirect else self.plain).forward(x)
        return activations

    def takes(self, sizes: Iterable[int]) -> bool:
        """Whether the network runs on square pictures of each of these sizes."""
        return all(self._takes(size) for size in sizes)

    @torch.inference_mode()
    def _takes(self, size: int) -> bool:
        try:
            found = self(torch.full((1, self.channels, size, size), 0.5, device=self.device))
        except (RuntimeError, AssertionError, ValueError):  # by position tables, windows, views of a fixed shape
            return False
        return found.ndim == 4 and found.shape[:2] == (1, self.layer.channels) and found.numel() > 0
