"""A split network gives the same results as the whole, and is split only where a single tensor crosses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline import graph
from pipeline.graph import STEM_BATCH, Graph, build, split_stem
from pipeline.models import open_model
from pipeline.scan.measurer import Measurer


class _Network(nn.Module):
    """Maps of 16 x 16, then of 4 x 4. `shortcut`: the picture is used again after all of them."""

    def __init__(self, shortcut: bool = False) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        picture = x
        x = F.relu(self.first(x))
        x = F.max_pool2d(x, 4)
        y = F.relu_(self.second(x))
        x = y + F.relu(self.third(y))
        return x + F.max_pool2d(picture, 4) if self.shortcut else x


def _graph(network: nn.Module) -> Graph:
    return build(network.eval().requires_grad_(False), "python", (1, 3, 16, 16))


def test_halves_are_the_whole() -> None:
    network = _graph(_Network())
    found = split_stem(network.module, network.sizes())
    assert found is not None
    first, second = found
    assert next(iter(reversed(first.graph.nodes))).args[0].name == "max_pool2d"  # type: ignore[union-attr]
    x = torch.randn(6, 3, 16, 16)
    assert torch.equal(second(torch.cat([first(piece) for piece in x.split(2)])), network.module(x))
    assert not hasattr(second, "first"), "each half has what it needs"
    assert not hasattr(first, "second")


class _Flat(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x * 2) + 1


class _Transposed(nn.Module):
    """The batch is the second axis of its small maps."""

    def forward(self, x: Tensor) -> Tensor:
        y = F.max_pool2d(F.relu(x), 4).transpose(0, 1)
        return F.relu(y * 2)


@pytest.mark.parametrize("network", [_Network(shortcut=True), _Flat()])
def test_no_place_to_cut(network: nn.Module) -> None:
    found = _graph(network)
    assert split_stem(found.module, found.sizes()) is None


def test_cut_where_pictures_lie_along_the_first_axis() -> None:
    found = _graph(_Transposed())
    cut = split_stem(found.module, found.sizes())
    assert cut is not None
    assert next(iter(reversed(cut[0].graph.nodes))).args[0].name == "max_pool2d"  # type: ignore[union-attr]


@pytest.mark.parametrize("source", ["torchvision:googlenet", "torchvision:resnet18", "timm:tf_efficientnet_lite0"])
@pytest.mark.parametrize("layers", ["blocks", "all"])
def test_measured_in_pieces(source: str, layers: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Measuring in pieces equals measuring in one.

    The batch is no multiple of STEM_BATCH: the last picture is a piece of its own.
    """
    model = open_model(source, "random:0")
    in_pieces = Measurer(model, layers)
    monkeypatch.setattr(graph, "split_stem", lambda *_: None)
    whole = Measurer(model, layers)
    assert in_pieces._pieces is not None
    assert whole._pieces is None
    pixels = np.random.default_rng(0).integers(0, 256, (2 * STEM_BATCH + 1, 3, 224, 224), np.uint8)
    found, wanted = in_pieces.pixels(pixels), whole.pixels(pixels)
    for name in ("max", "min", "mean", "logits"):
        np.testing.assert_allclose(getattr(found, name), getattr(wanted, name), rtol=1e-4, atol=1e-4)
    alone = [in_pieces.pixels(pixels[i : i + 1]) for i in (0, 2 * STEM_BATCH)]
    for name in ("max", "min", "mean"):
        together = getattr(found, name)[[0, 2 * STEM_BATCH]]
        np.testing.assert_allclose(together, np.concatenate([getattr(x, name) for x in alone]), rtol=1e-4, atol=1e-4)
    assert found.logits is not None
    assert found.logits.shape == (2 * STEM_BATCH + 1, 1000)
