"""Small members of the families that torchvision has, for tests that are not about one network's size.

Each is a factory for `python:support.small_networks:NAME`: random weights of a fixed seed, 64 x 64 pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.models.convnext import CNBlockConfig
from torchvision.models.efficientnet import MBConvConfig
from torchvision.models.googlenet import BasicConv2d, Inception, InceptionAux
from torchvision.models.mobilenetv3 import InvertedResidualConfig
from torchvision.models.regnet import BlockParams

from support.plain_network import CLASSES, DESCRIPTION


def _made(build: Callable[[], nn.Module]) -> tuple[nn.Module, dict[str, Any]]:
    torch.manual_seed(0)
    return build(), DESCRIPTION


def alexnet() -> tuple[nn.Module, dict[str, Any]]:
    def build() -> nn.Module:
        network = models.AlexNet(CLASSES)
        network.classifier = nn.Sequential(nn.Dropout(), nn.Linear(9216, 32), nn.ReLU(True), nn.Linear(32, CLASSES))
        return network

    return _made(build)


def vgg() -> tuple[nn.Module, dict[str, Any]]:
    def build() -> nn.Module:
        features = models.vgg.make_layers([16, "M", 24, 24, "M", 32, "M"], batch_norm=True)
        network = models.VGG(features, CLASSES)
        network.avgpool = nn.AdaptiveAvgPool2d(2)
        network.classifier = nn.Sequential(nn.Linear(128, 48), nn.ReLU(True), nn.Dropout(), nn.Linear(48, CLASSES))
        return network

    return _made(build)


class _Bottleneck(models.resnet.Bottleneck):
    expansion = 1


def resnet() -> tuple[nn.Module, dict[str, Any]]:
    return _made(lambda: models.ResNet(_Bottleneck, [1, 2, 1, 1], CLASSES, groups=4, width_per_group=8))


def densenet() -> tuple[nn.Module, dict[str, Any]]:
    return _made(lambda: models.DenseNet(8, (2, 3, 2), 16, num_classes=CLASSES))


def mobilenet_v3() -> tuple[nn.Module, dict[str, Any]]:
    block = partial(InvertedResidualConfig, dilation=1, width_mult=1.0)
    setting = [
        block(16, 3, 16, 16, False, "RE", 1), block(16, 3, 32, 24, True, "RE", 2), block(24, 5, 48, 24, True, "HS", 1),
        block(24, 5, 64, 32, True, "HS", 2),
    ]  # fmt: skip
    return _made(lambda: models.MobileNetV3(setting, 64, CLASSES))


def efficientnet() -> tuple[nn.Module, dict[str, Any]]:
    block = partial(MBConvConfig, width_mult=1.0, depth_mult=1.0)
    setting = [block(1, 3, 1, 16, 16, 1), block(6, 3, 2, 16, 24, 2), block(6, 5, 2, 24, 32, 1)]
    return _made(lambda: models.EfficientNet(setting, 0.1, num_classes=CLASSES, last_channel=64))


def convnext() -> tuple[nn.Module, dict[str, Any]]:
    setting = [CNBlockConfig(16, 24, 1), CNBlockConfig(24, 32, 2), CNBlockConfig(32, None, 1)]
    return _made(lambda: models.ConvNeXt(setting, num_classes=CLASSES))


def regnet() -> tuple[nn.Module, dict[str, Any]]:
    parameters = BlockParams.from_init_params(depth=4, w_0=16, w_a=12.0, w_m=2.0, group_width=8, se_ratio=0.25)
    return _made(lambda: models.RegNet(parameters, CLASSES))


def shufflenet() -> tuple[nn.Module, dict[str, Any]]:
    return _made(lambda: models.ShuffleNetV2([2, 2, 2], [16, 24, 32, 48, 64], CLASSES))


def mnasnet() -> tuple[nn.Module, dict[str, Any]]:
    return _made(lambda: models.MNASNet(0.25, CLASSES))


def _narrow(of: Any) -> Callable[..., nn.Module]:
    """A convolution of GoogLeNet or Inception with a quarter of its channels."""

    def make(inputs: int, outputs: int, **more: Any) -> nn.Module:
        made: nn.Module = of(inputs if inputs == 3 else inputs // 4, outputs // 4, **more)
        return made

    return make


def googlenet() -> tuple[nn.Module, dict[str, Any]]:
    def build() -> nn.Module:
        narrow = _narrow(BasicConv2d)
        blocks: list[Any] = [narrow, partial(Inception, conv_block=narrow), InceptionAux]
        network = models.GoogLeNet(CLASSES, aux_logits=False, init_weights=False, blocks=blocks)
        network.fc = nn.Linear(1024 // 4, CLASSES)
        return network

    return _made(build)


def inception() -> tuple[nn.Module, dict[str, Any]]:
    """Make it for pictures of 80 pixels, of which its last maps still have a few positions."""

    def build() -> nn.Module:
        of = models.inception
        narrow = _narrow(of.BasicConv2d)
        parts = (of.InceptionA, of.InceptionB, of.InceptionC, of.InceptionD, of.InceptionE)
        blocks: list[Any] = [narrow, *(partial(part, conv_block=narrow) for part in parts), of.InceptionAux]
        network = models.Inception3(CLASSES, aux_logits=False, init_weights=False, inception_blocks=blocks)
        network.fc = nn.Linear(2048 // 4, CLASSES)
        return network

    network, described = _made(build)
    return network, described | {"height": 80, "width": 80, "resize": 80}


def vit() -> tuple[nn.Module, dict[str, Any]]:
    return _made(lambda: models.VisionTransformer(64, 16, 2, 4, 48, 96, num_classes=CLASSES))


def swin() -> tuple[nn.Module, dict[str, Any]]:
    return _made(lambda: models.SwinTransformer([4, 4], 16, [2, 2], [2, 4], [4, 4], num_classes=CLASSES))


WINDOW = 4


class Windowed(nn.Module):
    """A map, the same in windows, what these look at, and a map again."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 4, 4)  # a map of 16 x 16
        self.inside = nn.Linear(8, 6)
        self.heads = nn.Conv2d(2, 4, 1)
        self.norm = nn.LayerNorm(6)
        self.head = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        n, c, h, w = x.shape
        x = x.view(n, c, h // WINDOW, WINDOW, w // WINDOW, WINDOW).permute(0, 2, 4, 3, 5, 1)
        x = self.inside(x.reshape(n, -1, WINDOW * WINDOW, c))  # [n, windows, offsets in a window, c]
        tokens = x.flatten(1, 2)
        keys = tokens.view(n, -1, 2, 3).transpose(1, 2)
        looks = self.heads(keys @ keys.transpose(-2, -1)).softmax(-1)  # [n, heads, tokens, tokens]
        tokens = self.norm(tokens + looks.mean(1) @ tokens)
        x = tokens.view(n, h // WINDOW, w // WINDOW, WINDOW, WINDOW, 6).permute(0, 5, 1, 3, 2, 4).reshape(n, 6, h, w)
        return self.head(x.relu().mean((2, 3)))


def windowed() -> tuple[nn.Module, dict[str, Any]]:
    return _made(Windowed)


class Scaled(nn.Module):
    """A convolution whose result is multiplied by a power of two: every number that follows from it is scaled."""

    def __init__(self, power: int) -> None:
        super().__init__()
        self.conv, self.scale = nn.Conv2d(3, 4, 3), 2.0**power

    def forward(self, x: Tensor) -> Tensor:
        scaled: Tensor = self.conv(x) * self.scale
        return scaled


def scaled_by_1() -> tuple[nn.Module, dict[str, Any]]:
    return _made(lambda: Scaled(0))


def scaled_by_66() -> tuple[nn.Module, dict[str, Any]]:
    return _made(lambda: Scaled(66))


def scaled_by_120() -> tuple[nn.Module, dict[str, Any]]:
    return _made(lambda: Scaled(120))
