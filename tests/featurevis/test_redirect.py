"""Redirected gradients: the formula, and networks in which a unit is silent at the start."""

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline import graph
from pipeline.featurevis import Picture, Renderer, Settings, render
from pipeline.featurevis.redirect import redirected, redirected_relu
from pipeline.models import Model, Preprocess


def _by_the_rule(x: float, grad: float, high: float, alive: bool) -> float:
    if 0 <= x <= high:
        return grad
    if alive:
        return 0.0
    return grad if (x < 0 and grad < 0) or (x > high and grad > 0) else 0.0


@pytest.mark.parametrize("high", [None, 6.0])
def test_gradient_follows_lucids_rule_element_by_element(high: float | None) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(6, 4, 3, 3, generator=generator) * 6
    x[2:4] = -x[2:4].abs() - 0.1  # all below zero
    x[4:] = torch.where(x[4:] > 0, x[4:] + 7, x[4:])  # all outside of 0..6
    grad = torch.randn(x.shape, generator=generator)
    x.requires_grad_()
    redirected_relu(x, high).backward(grad)
    top = math.inf if high is None else high
    expected = np.zeros(x.shape)
    for i in range(6):
        alive = bool(((x[i] >= 0) & (x[i] <= top)).any())
        for place in np.ndindex(4, 3, 3):
            expected[(i, *place)] = _by_the_rule(x[i][place].item(), grad[i][place].item(), top, alive)
    assert x.grad is not None
    np.testing.assert_array_equal(x.grad.numpy(), expected.astype(np.float32))
    assert x.grad[2].any()
    assert not torch.equal(x.grad[2], grad[2])


class _Assorted(nn.Module):
    """ReLUs in every spelling. The in-place activation changes what the sum after it reads."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = (nn.Conv2d(3, 3, 1) for _ in range(3))
        self.relu, self.in_place, self.clipped = nn.ReLU(), nn.ReLU(inplace=True), nn.Hardtanh(0.0, 1.0)

    def forward(self, x: Tensor) -> Tensor:
        a = self.one(self.relu(x - 0.5))
        b = self.in_place(a)
        c = self.two(a + b)
        d = F.relu6(c * 9) + torch.relu(c) + c.clamp(0, 1) + c.clamp(-1, 1)
        return self.clipped(self.three(d)) + F.relu(d - 1, True)


def test_forward_is_unchanged_bit_for_bit_and_so_is_the_module() -> None:
    torch.manual_seed(0)
    network = _Assorted().eval().requires_grad_(False)
    module = graph.build(network, "python", (1, 3, 8, 8)).module
    code, state = module.code, copy.deepcopy(network.state_dict())
    changed = redirected(module)
    x = torch.rand(4, 3, 8, 8)
    assert torch.equal(changed(x), network(x))
    calls = [node for node in changed.graph.nodes if node.target is redirected_relu]
    assert len(calls) == 7
    assert module.code == code
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())


class _Silent(nn.Module):
    """Two layers, of which the first is silent everywhere on any picture close to grey."""

    def __init__(self, first: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.first = nn.Conv2d(3, 4, 3), first
        self.after, self.last = nn.Conv2d(4, 2, 3), nn.ReLU()
        self.conv.bias.data.fill_(-2.0 if isinstance(first, nn.ReLU) else 6.5)
        self.after.weight.data.abs_()
        self.after.bias.data.fill_(-0.1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.after(self.first(self.conv(x))))


def _model(network: nn.Module) -> Model:
    network.eval().requires_grad_(False)
    plain = Preprocess(32, 32, 32, mean=(0.5,) * 3, std=(0.25,) * 3)
    return Model("tiny", "python:tiny", "random:0", "python", network, plain, None, "tiny")


def test_a_silent_start_moves_only_where_gradients_are_redirected() -> None:
    model = _model(_Silent(nn.ReLU()))
    start = render(model, "first:1", size=24, steps=0, progress=False)
    moved = render(model, "first:1", size=24, steps=24, learning_rate=0.5, progress=False)
    assert start.values[0] == 0
    assert moved.values[0] > 0
    still = render(model, "first:1", size=24, steps=24, learning_rate=0.5, redirected=0, progress=False)
    assert np.array_equal(still.images, start.images)


def test_a_saturated_start_comes_down_but_not_up() -> None:
    model = _model(_Silent(nn.ReLU6()))
    layer = model.graph.layers(["first"])[0]
    renderer = Renderer(model, layer, Settings(size=24, steps=16, batch=2, learning_rate=0.5))
    start = Renderer(model, layer, Settings(size=24, steps=0, batch=2)).render([Picture(1)])
    both = renderer.render([Picture(1, "positive"), Picture(1, "negative")])
    assert start.values[0] == 6
    assert both.values[0] == 6
    assert both.values[1] < 6
