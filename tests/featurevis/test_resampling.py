"""Sampling a batch under one affine map, and its gradient, agree with torch's grid_sample."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from pipeline.featurevis.resampling import sampled
from pipeline.featurevis.transforms import RandomRotate


def _back(angle: float, stretch: float = 1.0, shift: float = 0.0) -> NDArray[np.float64]:
    cos, sin = math.cos(math.radians(angle)) * stretch, math.sin(math.radians(angle)) * stretch
    return np.array([[cos, -sin, shift], [sin, cos, -shift]])


def _by_torch(x: Tensor, back: NDArray[np.float64], size: tuple[int, int], window: tuple[int, ...]) -> Tensor:
    top, left, rows, columns = window
    map_ = torch.from_numpy(back).expand(len(x), 2, 3)
    grid = F.affine_grid(map_, [len(x), x.shape[1], *size], align_corners=False).float()
    return F.grid_sample(x, grid[:, top : top + rows, left : left + columns], align_corners=False)


@pytest.mark.parametrize(
    ("back", "size", "window"),
    [
        (_back(10), (24, 30), (0, 0, 24, 30)),
        (_back(-7, 0.9), (26, 22), (3, 1, 20, 21)),
        (_back(45, 3.0, 0.3), (19, 17), (0, 0, 19, 17)),  # mostly from beyond the edge
        (_back(0, 1.0), (24, 30), (2, 2, 20, 26)),
    ],
)
@pytest.mark.parametrize("shape", [(1, 1, 24, 30), (5, 3, 24, 30), (2, 4, 9, 7)])
def test_it_is_grid_sample(
    back: NDArray[np.float64], size: tuple[int, int], window: tuple[int, int, int, int], shape: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    x = torch.rand(shape, requires_grad=True)
    wanted, found = _by_torch(x, back, size, window), sampled(x, back, size, window)
    assert found.shape == (*shape[:2], *window[2:])
    torch.testing.assert_close(found, wanted, rtol=0, atol=2e-5)
    weights = torch.randn(wanted.shape)
    (of_torch,), (ours,) = (torch.autograd.grad((y * weights).sum(), x) for y in (wanted, found))
    torch.testing.assert_close(ours, of_torch, rtol=1e-4, atol=1e-4)


def test_a_picture_is_the_same_whatever_lies_beside_it() -> None:
    x = torch.rand(7, 3, 24, 30)
    weights = torch.randn(3, 20, 21)
    found = []
    for chosen in ([2], [2, 0, 1], [5, 6, 2]):
        batch = x[chosen].requires_grad_()
        y = sampled(batch, _back(-7, 0.9), (26, 22), (3, 1, 20, 21))
        (gradient,) = torch.autograd.grad((y * weights).sum(), batch)
        place = chosen.index(2)
        found.append((y[place].detach(), gradient[place]))
    for y, gradient in found[1:]:
        assert torch.equal(y, found[0][0])
        assert torch.equal(gradient, found[0][1])


@pytest.mark.parametrize("size", [(1, 1), (1, 8), (2, 3)])
def test_the_smallest_canvases_turn(size: tuple[int, int]) -> None:
    turn = RandomRotate((5.0, -7.0, 0.0), (0.9, 1.1))
    for seed in range(8):
        found = turn(torch.rand(2, 3, *size), np.random.default_rng(seed))
        assert tuple(found.shape[2:]) in turn.sizes(size)
        assert turn(torch.rand(0, 3, 8, 8), np.random.default_rng(seed)).shape[0] == 0
