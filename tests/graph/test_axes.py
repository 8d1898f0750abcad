"""Check channel axes against shapes at two batch and image sizes, and signs and bounds against real outputs."""

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torchvision
from support.tracing import traced
from torch import Tensor, fx, nn

from pipeline.graph import Layer, with_taps


class _Shapes(fx.Interpreter):
    def __init__(self, module: fx.GraphModule):
        super().__init__(module)
        self.found: dict[str, tuple[int, ...]] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, Tensor):
            self.found[n.name] = tuple(value.shape)
        return value


def _vit(size: int) -> nn.Module:
    return torchvision.models.VisionTransformer(size, 16, 2, 2, 48, 80)


def _swin(size: int) -> nn.Module:
    return torchvision.models.SwinTransformer([4, 4], 24, [2, 2], [2, 4], [4, 4])


def _convnext(size: int) -> nn.Module:
    from torchvision.models.convnext import CNBlockConfig, ConvNeXt

    return ConvNeXt([CNBlockConfig(16, 24, 2), CNBlockConfig(24, None, 2)])


def _densenet() -> nn.Module:
    return torchvision.models.DenseNet(8, (3, 3, 3, 3), 16)


def _timm(name: str, **options: Any) -> Callable[[int], nn.Module]:
    return lambda size: timm.create_model(name, pretrained=False, **options)


def _timm_sized(name: str, **options: Any) -> Callable[[int], nn.Module]:
    return lambda size: timm.create_model(name, pretrained=False, img_size=size, **options)


def _torchvision(name: str) -> Callable[[int], nn.Module]:
    extra = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    return lambda size: torchvision.models.get_model(name, weights=None, **extra)


def _maxvit(size: int) -> nn.Module:
    return torchvision.models.MaxVit((size, size), 16, size // 32, [16, 32], [1, 1], 16, 0.0)


CASES: dict[str, tuple[Callable[[int], nn.Module], int, int]] = {
    "resnet18": (_torchvision("resnet18"), 64, 96),
    "shufflenet": (_torchvision("shufflenet_v2_x0_5"), 64, 96),
    "mobilenet_v3": (_torchvision("mobilenet_v3_small"), 64, 96),
    "squeezenet": (_torchvision("squeezenet1_1"), 64, 96),
    "convnext": (_convnext, 64, 96),
    "swin": (_swin, 64, 128),
    "vit": (_vit, 64, 96),
    "maxvit": (_maxvit, 128, 256),
    "timm lite0": (_timm("tf_efficientnet_lite0"), 64, 96),
    "timm vit": (_timm_sized("vit_tiny_patch16_224", reg_tokens=3, depth=2), 64, 96),
    "timm mixer": (_timm_sized("mixer_s32_224"), 128, 192),
}


@pytest.mark.parametrize("case", CASES)
def test_the_axis_that_neither_batch_nor_image_size_changes_is_the_channel(case: str) -> None:
    make, small, large = CASES[case]
    family = "timm" if case.startswith("timm") else "torchvision"
    shapes = []
    graphs = []
    for batch, size in ((2, small), (3, large)):
        found = traced(make(size).eval().requires_grad_(False), family, (1, 3, size, size))
        recorder = _Shapes(found.module)
        with torch.no_grad():
            recorder.run(torch.randn(batch, 3, size, size))
        shapes.append(recorder.found)
        graphs.append(found)
    layers = graphs[0].layers("all")
    assert [layer.name for layer in layers] == [layer.name for layer in graphs[1].layers("all")]
    decided = 0
    for layer in layers:
        first, second = shapes[0][layer.node], shapes[1][layer.node]
        axis = layer.layout.channel_axis
        assert first[axis] == second[axis] == layer.channels
        same = [i for i, (a, b) in enumerate(zip(first, second, strict=True)) if a == b]
        if len(same) == 1 and first[0] == 2:
            assert same == [axis], layer
            decided += 1
    # the 256 positions of a window do not change with the picture's size either
    assert decided > (0.25 if case == "maxvit" else 0.6) * len(layers)
    for layer in layers:  # the map has the size that the layer states
        shape = layer.to_nchw(torch.empty(shapes[0][layer.node], device="meta")).shape
        assert tuple(shape) == (2, layer.channels, layer.height, layer.width)


def _randomised(network: nn.Module) -> nn.Module:
    torch.manual_seed(1)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.2, 2)
            module.weight.uniform_(0.5, 2)
            module.bias.normal_()
    return network.eval()


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "resnet18": torchvision.models.resnet18,
    "googlenet": lambda: torchvision.models.googlenet(init_weights=False),
    "densenet": _densenet,
    "mobilenet_v2": torchvision.models.mobilenet_v2,
    "mobilenet_v3_small": torchvision.models.mobilenet_v3_small,
    "convnext_tiny": torchvision.models.convnext_tiny,
    "timm:tf_efficientnet_lite0": lambda: timm.create_model("tf_efficientnet_lite0", pretrained=False),
    "timm:resnetv2_18": lambda: timm.create_model("resnetv2_18", pretrained=False),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_signs_and_bounds_hold_and_are_not_needlessly_weak(name: str) -> None:
    network = _randomised(NETWORKS[name]().requires_grad_(False))
    found = traced(network, name.split(":")[0], (1, 3, 64, 64))
    lows: dict[str, float] = {}
    highs: dict[str, float] = {}

    def tap(layer: Layer, x: Tensor) -> None:
        lows[layer.name], highs[layer.name] = float(x.min()), float(x.max())

    layers = found.layers("all")
    with torch.no_grad():
        with_taps(found.module, layers, tap)(torch.randn(2, 3, 64, 64) * 3)
    for layer in layers:
        assert layer.signed or lows[layer.name] >= 0, layer
        assert layer.upper_bound is None or highs[layer.name] <= layer.upper_bound, layer
    # rectifiers must be proved non-negative
    for layer in layers:
        if layer.op in ("relu", "relu6"):
            assert not layer.signed
        if layer.op in ("gelu", "silu", "hardswish", "conv", "linear", "batchnorm"):
            assert layer.signed
        if layer.op == "relu6":
            assert layer.upper_bound == 6.0
            assert highs[layer.name] > 0
    if name == "googlenet":
        assert [layer.name for layer in found.layers() if layer.signed] == ["fc"]
