"""Four convolutions and a classifier: the network of tests about stores, processes and engines.

A factory for `python:support.plain_network:plain`: random weights of a fixed seed, 64 x 64 pixels. It needs only torch,
so that the many processes of these tests start quickly.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

CLASSES = 10
DESCRIPTION = {
    "height": 64, "width": 64, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225],
    "labels": [f"class {i}" for i in range(CLASSES)],
}  # fmt: skip


def plain() -> tuple[nn.Module, dict[str, Any]]:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for inputs, outputs, stride in ((3, 16, 2), (16, 24, 2), (24, 24, 1), (24, 32, 2)):
        layers += [nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, CLASSES)), DESCRIPTION
