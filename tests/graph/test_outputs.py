"""The logits are found in whatever a network returns, or there is a reason why not."""

from __future__ import annotations

import re
from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline.graph import Graph, build

Pair = namedtuple("Pair", "hidden logits")


@dataclass
class Output:
    logits: Tensor
    hidden: Tensor


class _Net(nn.Module):
    def __init__(self, result: Callable[[Any, Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.conv, self.fc, self.other, self.result = nn.Conv2d(3, 6, 3), nn.Linear(6, 4), nn.Linear(6, 5), result

    def forward(self, x: Tensor) -> Any:
        y = self.conv(x).relu()
        return self.result(self, y, y.mean((2, 3)))


class _Head(nn.Module):
    """A module that cannot be traced and returns a mapping."""

    def __init__(self, make: Callable[..., Any]) -> None:
        super().__init__()
        self.fc, self.make = nn.Linear(6, 4), make

    def forward(self, x: Tensor) -> Any:
        return self.make(hidden=x * (2 if x.sum() > 1e9 else 1), logits=self.fc(x))


def _graph(result: Callable[[Any, Tensor, Tensor], Any], **parts: nn.Module) -> Graph:
    network = _Net(result)
    for name, part in parts.items():
        setattr(network, name, part)
    return build(network.eval().requires_grad_(False), "python", (1, 3, 16, 16))


@pytest.mark.parametrize(
    "result",
    [
        lambda net, y, z: net.fc(z),
        lambda net, y, z: {"logits": net.fc(z), "features": y},
        lambda net, y, z: {"out": {"logits": net.fc(z), "aux": net.other(z)}, "features": y},
        lambda net, y, z: (y, net.fc(z)),
        lambda net, y, z: [net.fc(z)],
        lambda net, y, z: Pair(z, net.fc(z)),
        lambda net, y, z: Output(net.fc(z), z),
    ],
    ids=["tensor", "mapping", "nested", "tuple", "list", "named tuple", "dataclass"],
)
def test_logits_are_found(result: Callable[[Any, Tensor, Tensor], Any]) -> None:
    found = _graph(result)
    (layer,) = found.layers("fc")
    assert found.logits == layer.node
    assert (layer.channels, found.no_logits) == (4, "")
    x = torch.randn(2, 3, 16, 16)
    assert found.module(x).shape == (2, 4)


@pytest.mark.parametrize("make", [dict, Pair, Output])
@pytest.mark.filterwarnings("ignore::store.errors.Notice")
def test_logits_inside_what_a_module_returns_get_a_node(make: Callable[..., Any]) -> None:
    head = _Head(make)
    found = _graph(lambda net, y, z: net.head(z), head=head)
    (layer,) = found.layers("head.logits")
    assert found.logits == layer.node
    assert found.module(torch.randn(2, 3, 16, 16)).shape == (2, 4)


@pytest.mark.parametrize(
    ("result", "reason"),
    [
        (lambda net, y, z: y, r"the output \[n, 6, 14, 14\] is not one value"),
        (lambda net, y, z: (net.fc(z), net.other(z)), r"0 \[n, 4\], 1 \[n, 5\]\): give a factory"),
        (lambda net, y, z: {"a": y, "b": y.mean()}, r"none of the outputs a \[n, 6, 14, 14\], b \[\]"),
        (lambda net, y, z: None, "returns no tensor"),
    ],
    ids=["map", "two", "none", "nothing"],
)
def test_there_is_a_reason_if_there_are_none(result: Callable[[Any, Tensor, Tensor], Any], reason: str) -> None:
    found = _graph(result)
    assert found.logits is None
    assert re.search(reason, found.no_logits), found.no_logits


def test_the_logits_are_the_classifier_not_what_passes_them_on() -> None:
    found = _graph(lambda net, y, z: net.drop(net.fc(z).flatten(1)), drop=nn.Dropout())
    assert found.layers("fc")[0].node == found.logits


def test_a_network_without_its_classifier_returns_features() -> None:
    found = _graph(lambda net, y, z: net.head(z), head=nn.Identity())
    assert found.logits is None
    assert found.no_logits == "head is no classifier (Identity), so the network returns features"
