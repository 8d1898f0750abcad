"""Check folding, taps, truncation and unclipping against forward hooks, float64 and the definitions."""

import copy
import weakref
from collections import defaultdict
from dataclasses import replace
from functools import lru_cache

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from support.tracing import traced
from torch import Tensor, nn

from pipeline.graph import Graph, Layer, build, fold_norms, truncated, unclipped, with_taps
from store.errors import UsageError


@lru_cache(1)
def network(name: str) -> nn.Module:
    """Return a network whose norms have random statistics, scales and shifts, so that they change values."""
    torch.manual_seed(0)
    if name.startswith("timm:"):
        net = timm.create_model(name.removeprefix("timm:"), pretrained=False)
    else:
        extra = {"init_weights": False} if name == "googlenet" else {}
        net = torchvision.models.get_model(name, weights=None, **extra)
    net.eval().requires_grad_(False)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.3, 2)
            module.weight.uniform_(0.5, 1.5)
            module.bias.normal_(0, 0.3)
    return net


@lru_cache(1)
def graph(name: str) -> Graph:
    return traced(network(name), name.split(":")[0], (1, 3, 64, 64))


def _tapped(module: nn.Module, layers: tuple[Layer, ...], x: Tensor) -> tuple[dict[str, Tensor], Tensor | None]:
    found: dict[str, Tensor] = {}
    with torch.no_grad():
        result = with_taps(module, layers, lambda layer, y: found.__setitem__(layer.name, y.clone()))(x)
    return found, result


FOLDED = ["resnet50", "googlenet", "mobilenet_v2", "timm:tf_efficientnet_lite0", "densenet121"]


@pytest.mark.parametrize("name", FOLDED)
def test_folded_network_is_as_near_to_float64_as_the_network_is(name: str) -> None:
    found = graph(name)
    layers = found.layers()
    folded = fold_norms(found.module, {layer.node for layer in layers})
    x = torch.randn(2, 3, 32, 32)  # small, because depthwise convolutions are slow in float64
    exact, _ = _tapped(
        traced(copy.deepcopy(network(name)).double(), name.split(":")[0], (1, 3, 64, 64)).module, layers, x.double()
    )
    plain, before = _tapped(found.module, layers, x)
    close, after = _tapped(folded, layers, x)
    assert list(close) == [layer.name for layer in layers]
    assert before is not None
    assert after is not None
    for layer in layers:
        scale = exact[layer.name].abs().max()
        error = (close[layer.name] - exact[layer.name]).abs().max() / scale
        unfolded = (plain[layer.name] - exact[layer.name]).abs().max() / scale
        assert error < 3 * unfolded + 1e-6, (layer.name, error, unfolded)
    names = defaultdict(lambda: "new", {layer.node: layer.name for layer in found.layers("all")})
    names |= {node.name: f"unnamed.{node.name}" for node in folded.graph.nodes if node.name not in names}
    again = Graph(folded, names, found.input_shape).layers()
    assert again == tuple(replace(old, op=new.op) for old, new in zip(layers, again, strict=True))
    assert all(old.op in (new.op, "batchnorm") for old, new in zip(layers, again, strict=True))
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    # densenet's norms come before its convolutions: only the second of each pair and the stem's can be folded
    assert norms == (58 + 3 + 1 if name == "densenet121" else 0)


def test_folding_does_not_touch_the_network() -> None:
    before = copy.deepcopy(network("resnet50").state_dict())
    fold_norms(graph("resnet50").module, ())
    after = network("resnet50").state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_a_wanted_convolution_is_not_folded() -> None:
    found = graph("resnet50")
    layers = found.layers(["layer1.0.conv1", "layer1.0.conv2"])
    x = torch.randn(2, 3, 64, 64)
    kept = fold_norms(found.module, {layer.node for layer in layers})
    plain, _ = _tapped(found.module, layers, x)
    close, _ = _tapped(kept, layers, x)
    for name, value in plain.items():
        assert torch.allclose(close[name], value, rtol=1e-4, atol=1e-5)
    with pytest.raises(UsageError, match="layer1_0_conv2"):
        with_taps(fold_norms(found.module, {"layer1_0_conv1"}), layers, lambda layer, y: None)


@pytest.mark.parametrize("size", [64, 65, 97])
def test_folded_same_padding_follows_the_picture(size: int) -> None:
    found = graph("timm:tf_efficientnet_lite0")
    x = torch.randn(1, 3, size, size)
    with torch.no_grad():
        expected = network("timm:tf_efficientnet_lite0")(x)
        assert torch.allclose(
            fold_norms(found.module, ())(x), expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max())
        )


class _Standardised(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        return F.conv2d(input, self.weight - self.weight.mean(), self.bias)


class _Unfoldable(nn.Module):
    """A convolution called twice, one whose output has two users, one that changes its weight, and a shared norm."""

    def __init__(self) -> None:
        super().__init__()
        self.twice, self.used, self.standardised = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), _Standardised(3, 3, 1)
        self.a, self.b, self.c, self.shared = (nn.BatchNorm2d(3) for _ in range(4))
        self.d, self.e = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(self.twice(x)) + self.a(self.twice(x + 1))
        y = self.used(x)
        x = self.b(y) + y
        x = self.c(self.standardised(x))
        return self.shared(self.d(x)) * self.shared(self.e(x))


def test_what_cannot_be_folded_is_left() -> None:
    net = _Unfoldable().eval().requires_grad_(False)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            module.weight.normal_()
    folded = fold_norms(build(net, "python", (1, 3, 8, 8)).module, ())
    x = torch.randn(2, 3, 8, 8)
    assert torch.allclose(folded(x), net(x), atol=1e-5)
    assert {node.name for node in folded.graph.nodes} >= {"twice", "twice_1", "used", "a", "b", "c"}
    assert not {"d", "e"} & {node.name for node in folded.graph.nodes}


def test_taps_see_what_hooks_see_though_relu_writes_in_place() -> None:
    net, found = network("resnet50"), graph("resnet50")
    block = net.layer1[0]
    seen: dict[str, list[Tensor]] = defaultdict(list)
    written: list[Tensor] = []
    handles = [
        getattr(block, name).register_forward_hook(lambda m, i, y, name=name: seen[name].append(y.clone()))
        for name in ("bn1", "bn3", "relu")
    ]
    handles.append(block.bn1.register_forward_hook(lambda m, i, y: written.append(y)))
    x = torch.randn(2, 3, 64, 64)
    net(x)
    for handle in handles:
        handle.remove()
    names = ["bn1", "bn3", "relu", "relu_1", "relu_2"]
    values, result = _tapped(found.module, found.layers([f"layer1.0.{name}" for name in names]), x)
    got = [values[f"layer1.0.{name}"] for name in names]
    expected = [seen["bn1"][0], seen["bn3"][0], *seen["relu"]]
    assert len(seen["relu"]) == 3
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    assert got[0].min() < 0 <= written[0].min(), "the ReLU was to write in place"
    assert result is None


@pytest.mark.parametrize("name", ["vit_b_16", "swin_t"])
def test_taps_lay_tokens_on_the_grid(name: str) -> None:
    size = 224 if name == "vit_b_16" else 64
    found = traced(network(name), "torchvision", (1, 3, size, size))
    node = "encoder.layers.encoder_layer_1.mlp.1" if name == "vit_b_16" else "features.1.1.mlp.1"
    seen: list[Tensor] = []
    handle = network(name).get_submodule(node).register_forward_hook(lambda m, i, y: seen.append(y.clone()))
    x = torch.randn(2, 3, size, size)
    network(name)(x)
    handle.remove()
    values, _ = _tapped(found.module, found.layers([f"{node}*"]), x)
    if name == "vit_b_16":
        assert torch.equal(values[node], seen[0][:, 1:].permute(0, 2, 1).reshape(2, 3072, 14, 14))
        assert torch.equal(values[f"{node}@prefix"], seen[0][:, 0, :, None, None])
    else:
        assert torch.equal(values[node], seen[0].permute(0, 3, 1, 2))


def test_logits_are_returned_only_where_wanted() -> None:
    graph.cache_clear()  # built anew, of the network that is compared with
    original = network("resnet50")
    found = graph("resnet50")
    x = torch.randn(2, 3, 64, 64)
    _, result = _tapped(found.module, found.layers(), x)
    assert result is not None
    assert torch.equal(result, original(x))
    tapped = with_taps(found.module, found.layers(["layer2.0.relu"]), lambda layer, y: None)
    assert tapped(x) is None
    assert not any(name.startswith(("layer2.0.bn2", "layer3", "fc")) for name, _ in tapped.named_parameters())
    assert len(found.module.graph.nodes) == 177, "the graph itself stays whole"
    owned = {id(parameter) for parameter in original.parameters()}
    assert {id(parameter) for parameter in tapped.parameters()} <= owned


def test_tapped_activations_are_freed_at_once() -> None:
    found = graph("resnet50")
    living: list[weakref.ref[Tensor]] = []
    most = 0

    def tap(layer: Layer, y: Tensor) -> None:
        nonlocal most
        living.append(weakref.ref(y))
        most = max(most, sum(ref() is not None for ref in living))

    with torch.no_grad():
        with_taps(found.module, found.layers("all"), tap)(torch.randn(1, 3, 64, 64))
    assert len(living) == len(found.layers("all")) == 175
    assert most <= 4


@pytest.mark.parametrize("fold", [False, True])
def test_truncated_is_differentiable_and_short(fold: bool) -> None:
    found = graph("timm:tf_efficientnet_lite0")
    layer = found.layers(["blocks.2.0.bn1"])[0]
    module = fold_norms(found.module, {layer.node}) if fold else found.module
    cut = truncated(module, layer)
    x = torch.randn(2, 3, 64, 64, requires_grad=True)
    y = cut(x)
    assert y.shape == (2, layer.channels, layer.height, layer.width)
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0
    values, _ = _tapped(module, (layer,), x.detach())
    assert torch.equal(y.detach(), values[layer.name])
    assert not any(name.startswith("blocks.3") for name, _ in cut.named_modules())


def test_several_layers_come_in_order_and_untouched_by_what_is_in_place() -> None:
    """The ReLUs of resnet50 overwrite the outputs of the norms before them."""
    found = graph("resnet50")
    names = ["layer1.1.relu", "layer1.0.bn1", "layer1.0.relu", "layer1.0.bn2"]
    layers = [found.layers([name])[0] for name in names]
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        together = truncated(found.module, layers)(x)
        alone = [truncated(found.module, layer)(x) for layer in layers]
    assert all(torch.equal(mine, its) for mine, its in zip(together, alone, strict=True))
    assert together[1].min() < 0


def test_taps_before_a_truncation_stay() -> None:
    found = graph("resnet50")
    seen: list[str] = []
    early, late = found.layers(["layer1.0.relu", "layer1.2.relu"])
    tapped = with_taps(found.module, (early, *found.layers(["fc"])), lambda layer, y: seen.append(layer.name))
    truncated(tapped, late)(torch.randn(1, 3, 64, 64))
    assert seen == ["layer1.0.relu"]


@pytest.mark.parametrize("fold", [False, True])
def test_unclipped_removes_the_layers_own_limit_only(fold: bool) -> None:
    found = graph("timm:tf_efficientnet_lite0")
    layer = found.layers(["blocks.1.0.bn1"])[0]
    module = fold_norms(found.module, ()) if fold else found.module
    x = torch.randn(2, 3, 64, 64) * 4
    values, _ = _tapped(module, (layer,), x)
    free, _ = _tapped(unclipped(module, layer), (layer,), x)
    assert free[layer.name].max() > 6.5
    assert torch.equal(free[layer.name].clamp(max=6), values[layer.name])
    two = unclipped(unclipped(module, layer), found.layers(["blocks.1.0.bn2"])[0])
    values, _ = _tapped(two, found.layers(["blocks.1.0.bn[12]"]), x)
    assert all(value.max() > 6.5 for value in values.values())
    unlimited = found.layers(["blocks.1.0.bn3"])[0]
    assert unclipped(module, unlimited) is module


class _Clips(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.hard = nn.Hardtanh(0, 2)
        self.two_sided = nn.Hardtanh(-1, 1)
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return self.hard(x) + self.two_sided(x) + F.relu6(x) + x.clamp(0, 3) + F.hardtanh(x, 0.0, 4.0) + F.relu(x)


def test_every_way_to_write_a_clip() -> None:
    found = build(_Clips().eval().requires_grad_(False), "python", (1, 3, 6, 6))
    limits = {"hard": (0, 2), "two_sided": (-1, 1), "relu6": (0, 6), "clamp": (0, 3), "hardtanh": (0, 4)}
    x = torch.randn(4, 3, 6, 6) * 30
    pre, _ = _tapped(found.module, found.layers(["conv"]), x)
    for layer in found.layers(list(limits)):
        low, high = limits[layer.name]
        assert (layer.upper_bound, layer.signed) == (high, low < 0)
        free, _ = _tapped(unclipped(found.module, layer), (layer,), x)
        assert torch.equal(free[layer.name], pre["conv"].clamp(min=low))
    relu = found.layers(["relu"])[0]
    assert unclipped(found.module, relu) is found.module
