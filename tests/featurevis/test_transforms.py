"""Each transform by itself, and the default chain."""

from __future__ import annotations

import importlib
import math
import warnings

import numpy as np
import pytest
import torch

from pipeline.featurevis import transforms
from pipeline.featurevis.transforms import (
    DEFAULT,
    CollapseAlpha,
    Jitter,
    Noise,
    Own,
    Pad,
    RandomCrop,
    RandomRotate,
    RandomScale,
    compose,
    composed,
)


def _rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_pad_is_grey_around_the_same_picture() -> None:
    x = torch.rand(2, 3, 6, 5)
    y = Pad(12)(x, _rng())
    assert y.shape == (2, 3, 30, 29)
    assert torch.equal(y[:, :, 12:18, 12:17], x)
    y[:, :, 12:18, 12:17] = 0.5
    assert (y == 0.5).all()


def test_jitter_is_every_crop_and_no_other() -> None:
    x = torch.arange(7 * 6, dtype=torch.float32).view(1, 1, 7, 6)
    rng = _rng()
    seen = {int(Jitter(2)(x, rng)[0, 0, 0, 0]) for _ in range(200)}
    assert seen == {top * 6 + left for top in range(3) for left in range(3)}
    crop = Jitter(2)(x, rng)
    assert crop.shape == (1, 1, 5, 4)
    assert torch.equal(crop - crop[:, :, :1, :1], x[:, :, :5, :4] - x[:, :, :1, :1])


def test_scaling_a_ramp_gives_a_ramp_of_the_inverse_slope() -> None:
    ramp = torch.arange(40, dtype=torch.float32).expand(1, 1, 40, 40)
    for factor in (0.9, 1.1):
        y = RandomScale((factor,))(ramp, _rng())
        assert y.shape[2:] == (int(40 * factor),) * 2
        np.testing.assert_allclose(y[0, 0, 5:-5, 5:-5].diff(dim=1), 40 / y.shape[3], atol=1e-4)


@pytest.mark.parametrize("shape", [(8, 8), (9, 9)])
def test_a_right_angle_is_numpys(shape: tuple[int, int]) -> None:
    x = torch.rand(2, 3, *shape)
    y = RandomRotate((90,))(x, _rng())
    np.testing.assert_allclose(y, np.rot90(x.numpy(), axes=(2, 3)), atol=1e-5)


def test_a_point_turns_about_the_centre_of_an_oblong_picture() -> None:
    x = torch.zeros(1, 1, 41, 61)
    x[0, 0, 20, 45] = 1.0  # 15 pixels right of the centre
    y = RandomRotate((10,))(x, _rng())[0, 0]
    rows, columns = torch.meshgrid(torch.arange(41.0), torch.arange(61.0), indexing="ij")
    place = (float((y * rows).sum() / y.sum()), float((y * columns).sum() / y.sum()))
    turned = (20 - 15 * math.sin(math.radians(10)), 30 + 15 * math.cos(math.radians(10)))
    assert place == pytest.approx(turned, abs=0.1)


def test_no_angle_changes_nothing_and_corners_are_black() -> None:
    x = torch.ones(1, 3, 20, 20)
    assert torch.equal(RandomRotate((0,))(x, _rng()), x)
    assert RandomRotate((10,))(x, _rng())[0, :, 0, 0].abs().max() == 0


def test_default_transforms_stay_within_the_sizes_they_announce() -> None:
    announced = transforms.sizes(DEFAULT, (40, 30))
    x = torch.rand(1, 3, 40, 30)
    assert {tuple(compose(DEFAULT, x, _rng(seed)).shape[2:]) for seed in range(200)} == announced
    factors = [1 + (i - 5) / 50 for i in range(11)]
    assert announced == {(int(factor * 56) - 4, int(factor * 46) - 4) for factor in factors}


def test_one_draw_moves_the_whole_batch_and_a_seed_fixes_it() -> None:
    x = torch.rand(1, 3, 32, 32).repeat(4, 1, 1, 1)
    results = [compose(DEFAULT, x, _rng(seed)) for seed in range(12)]
    for seed, y in enumerate(results):
        assert torch.equal(y, y[:1].expand_as(y))
        assert torch.equal(y, compose(DEFAULT, x, _rng(seed)))
    assert len({y.shape[2] for y in results}) > 3


def test_transforms_pass_gradients_to_the_picture() -> None:
    x = torch.rand(1, 3, 32, 32, requires_grad=True)
    compose(DEFAULT, x, _rng()).sum().backward()
    assert x.grad is not None
    assert (x.grad[:, :, 8:-8, 8:-8] > 0).all()


def test_a_random_crop_is_an_enlarged_window_of_the_wanted_share() -> None:
    ramp = torch.arange(60, dtype=torch.float32).expand(1, 1, 60, 60)
    for low, high in ((0.5, 0.5), (0.2, 0.9), (1.0, 1.0)):
        shares = set()
        for seed in range(20):
            y = RandomCrop(low, high)(ramp, _rng(seed))
            assert y.shape == ramp.shape
            assert y.min() >= 0
            assert y.max() <= 59.001
            shares.add(round(float(y[0, 0, 5:-5, 5:-5].diff(dim=1).mean()), 3))  # the slope is the window's share
        assert min(shares) >= low - 0.02
        assert max(shares) <= high + 0.02
        assert (len(shares) == 1) == (low == high)


def test_noise_is_the_same_on_every_picture_and_of_the_stated_deviation() -> None:
    y = Noise(0.1)(torch.zeros(3, 3, 50, 50), _rng())
    assert torch.equal(y[0], y[1])
    assert y.std().item() == pytest.approx(0.1, rel=0.05)


def test_a_function_of_ones_own_announces_its_sizes() -> None:
    halved = Own(lambda x: x[:, :, ::2, ::2])
    x = torch.rand(1, 3, 30, 40)
    assert transforms.sizes((Pad(2), halved), (30, 40)) == {(17, 22)}
    assert torch.equal(compose((halved,), x, _rng()), x[:, :, ::2, ::2])


@pytest.mark.parametrize("channels", [1, 3])
def test_what_is_opaque_is_itself_and_what_is_not_is_natural_noise(channels: int) -> None:
    x = torch.rand(2, channels + 1, 64, 64)
    x[0, -1], x[1, -1] = 1.0, 0.0
    y, other = (CollapseAlpha()(x, _rng(seed)) for seed in (0, 1))
    assert y.shape == (2, channels, 64, 64)
    assert torch.equal(y[0], x[0, :-1])
    assert not torch.equal(y[1], other[1])
    assert 0.05 < y[1].std() < 0.4
    near = (y[1, :, 1:] - y[1, :, :-1]).abs().mean()
    assert near < 0.7 * (y[1, :, 20:] - y[1, :, :-20]).abs().mean(), "smooth: neighbours are alike"
    assert torch.equal(composed(x)[1], torch.full((channels, 64, 64), 0.5))


@pytest.mark.parametrize("factor", [0.9, 1.1])
def test_scaling_and_turning_at_once_is_both_in_turn(factor: float) -> None:
    """The picture is smooth, so a second interpolation does not blur it. Its corners are left out."""
    rows, columns = torch.meshgrid(torch.arange(50.0), torch.arange(70.0), indexing="ij")
    x = torch.stack([(rows / 9).sin(), columns / 70, ((rows - columns) / 11).cos()])[None]
    for angle in (-10, 0, 8):
        both = RandomRotate((angle,), (factor,))(x, _rng())
        turn = RandomRotate((angle,))(RandomScale((factor,))(x, _rng()), _rng())
        assert both.shape == turn.shape == (1, 3, int(50 * factor), int(70 * factor))
        torch.testing.assert_close(both[:, :, 10:-10, 10:-10], turn[:, :, 10:-10, 10:-10], atol=5e-3, rtol=0)


@pytest.mark.parametrize("angle", [-10, 7, 10])
def test_padding_and_turning_are_lucents(angle: int) -> None:
    """lucent's scaling and jitter are not compared, because they differ from Lucid's.

    The scaling aligns corners and pads, and the jitter shifts in black.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lucent = importlib.import_module("lucent.optvis.transform")
    rows, columns = torch.meshgrid(torch.arange(41.0), torch.arange(41.0), indexing="ij")
    x = (torch.stack([rows.sin(), columns / 41, (rows - columns).cos()])[None] + 1) / 2  # smooth: no corner matters
    assert torch.equal(Pad(12)(x, _rng()), lucent.pad(12, mode="constant", constant_value=0.5)(x))
    inside = (slice(None), slice(None), slice(8, -8), slice(8, -8))
    found, expected = RandomRotate((angle,))(x, _rng()), lucent.random_rotate([angle])(x)
    torch.testing.assert_close(found[inside], expected[inside], atol=1e-4, rtol=0)


def test_what_is_done_in_one_pass_is_what_each_alone_would_do() -> None:
    x = torch.rand(2, 3, 50, 40)
    for seed in range(20):
        padded = compose((Pad(5), Jitter(4)), x, _rng(seed))
        assert torch.equal(Pad(5, jitter=4)(x, _rng(seed)), padded)
        turn = RandomRotate((-7, 0, 9), (0.9, 1.0, 1.1))
        apart = compose((turn, Jitter(4)), x, _rng(seed))
        at_once = RandomRotate(turn.degrees, turn.factors, jitter=4)(x, _rng(seed))
        torch.testing.assert_close(at_once, apart, atol=1e-6, rtol=0)


def test_on_a_small_canvas_the_default_moves_less() -> None:
    assert transforms.default_of((128, 400)) == DEFAULT
    assert transforms.default_of((28, 400))[0] == Pad(3, jitter=2)
    assert [t.jitter for t in transforms.default_of((28, 28)) if isinstance(t, RandomRotate)] == [1]
