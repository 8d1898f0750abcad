"""Compare where a layer's positions are in the picture with where a change of the picture shows.

The picture is changed in one of 4 x 4 cells at a time. If a position answers one cell far more than the others, that
must be the cell in which the layer says that it lies. Positions that see all of the picture alike say nothing.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from numpy.typing import NDArray
from support.tracing import traced
from torch import Tensor, nn

from pipeline.graph import Layer, with_taps

CELLS = 4
DISTINCT = 4  # times the mean over cells that the strongest answer is at least


def _pictures(size: int) -> Tensor:
    """Return a picture, and it with another one's content in each cell in turn: [1 + CELLS * CELLS, 3, size, size]."""
    generator = torch.Generator().manual_seed(0)
    base, other = torch.randn(2, 3, size, size, generator=generator)
    edges = [round(i * size / CELLS) for i in range(CELLS + 1)]
    pictures = [base]
    for y in range(CELLS):
        for x in range(CELLS):
            at = slice(edges[y], edges[y + 1]), slice(edges[x], edges[x + 1])
            changed = base.clone()
            changed[:, *at] = other[:, *at]
            pictures.append(changed)
    return torch.stack(pictures)


def _nearest(length: int) -> NDArray[np.float64]:
    """Return where each of `length` positions lies, counted in cells."""
    return (np.arange(length) + 0.5) / length * CELLS - 0.5


def _found(values: Tensor) -> tuple[int, int]:
    """Return how many positions of [1 + cells, C, H, W] single out a cell, and how many of these lie in it."""
    change = (values[1:] - values[:1]).pow(2).sum(1).sqrt().numpy()  # [cells, H, W]
    mean = change.mean(0)
    distinct = (change.max(0) > DISTINCT * mean) & (mean > 0)
    y, x = np.divmod(change.argmax(0), CELLS)
    near = (abs(y - _nearest(change.shape[1])[:, None]) < 0.9) & (abs(x - _nearest(change.shape[2])) < 0.9)
    return int(distinct.sum()), int((distinct & near).sum())


def judged(network: nn.Module, family: str, size: int) -> dict[str, tuple[Layer, int, int]]:
    """Return (layer, positions that single out a cell, those of them that lie in it) of each layer of a network."""
    graph = traced(network.eval().requires_grad_(False), family, (1, 3, size, size))
    layers = graph.layers("all")
    found: dict[str, tuple[Layer, int, int]] = {}

    def tap(layer: Layer, values: Tensor) -> None:
        assert values.shape[2:] == (layer.height, layer.width)
        if layer.height * layer.width > 1:
            found[layer.name] = (layer, *_found(values))

    with torch.no_grad():
        with_taps(graph.module, layers, tap)(_pictures(size))
    return found


def _timm(name: str, **smaller: Any) -> Callable[[], nn.Module]:
    return lambda: timm.create_model(name, **smaller)


def _maxvit() -> nn.Module:
    return torchvision.models.MaxVit((224, 224), 16, 7, [16, 32, 32, 32], [1, 1, 2, 1], 16, 0.0)


def _swin_v2() -> nn.Module:
    of = torchvision.models.swin_transformer
    parts = {"block": of.SwinTransformerBlockV2, "downsample_layer": of.PatchMergingV2}
    return torchvision.models.SwinTransformer([4, 4], 24, [2, 2, 2, 2], [1, 2, 4, 8], [8, 8], **parts)


def _vit() -> nn.Module:
    return torchvision.models.VisionTransformer(224, 16, 3, 4, 96, 192)


# Narrow or shallow members of each family. They order their positions as the large ones do.
NETWORKS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "maxvit": (_maxvit, "torchvision"),
    "swin_v2": (_swin_v2, "torchvision"),
    "vit": (_vit, "torchvision"),
    "hiera_tiny_224": (_timm("hiera_tiny_224", embed_dim=32, stages=(1, 1, 2, 1)), "timm"),
    "levit_128s": (_timm("levit_128s"), "timm"),
    "efficientformerv2_s0": (_timm("efficientformerv2_s0"), "timm"),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_positions_are_where_the_picture_changes(name: str) -> None:
    make, family = NETWORKS[name]
    torch.manual_seed(0)
    found = judged(make(), family, 224)
    spatial = {name: counts for name, (layer, *counts) in found.items() if layer.spatial}
    assert len(spatial) > 0.9 * len(found)
    assert sum(distinct > 0 for distinct, _ in spatial.values()) > 0.15 * len(spatial)
    assert not {name: counts for name, counts in spatial.items() if counts[1] < 0.9 * counts[0]}
