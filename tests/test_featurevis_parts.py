"""The parts of a rendering, each alone: parameterizations, transforms, objectives."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.featurevis import objectives, transforms
from pipeline.featurevis.parameterizations import FFT, PARAMETERIZATIONS, Pixel
from pipeline.featurevis.transforms import DEFAULT, Jitter, Pad, RandomRotate, RandomScale, compose
from store.errors import UsageError


def _starts(seeds: Sequence[int]) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def _rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def _sigmoid(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return 1 / (1 + np.exp(-x))


def _colored(x: NDArray[np.float64]) -> NDArray[np.float64]:
    matrix = np.array([[0.26, 0.09, 0.02], [0.27, 0.00, -0.05], [0.27, -0.09, 0.03]])
    matrix /= np.sqrt((matrix**2).sum(0)).max()
    return np.einsum("rc,nchw->nrhw", matrix, x)


def _sum_of_waves(parameters: NDArray[np.float64], height: int, width: int) -> NDArray[np.float64]:
    """Each coefficient as a wave over the picture; a column that is not its own mirror image counts twice."""
    n, channels = parameters.shape[:2]
    y, x = np.mgrid[:height, :width]
    picture = np.zeros((n, channels, height, width))
    for u in range(height):
        for v in range(width // 2 + 1):
            frequency = math.hypot(min(u, height - u) / height, v / width)
            scale = math.sqrt(height * width) / max(frequency, 1 / max(height, width))
            wave = np.exp(2j * np.pi * (u * y / height + v * x / width)) / (height * width)
            mirrored = 1 if v == 0 or 2 * v == width else 2
            coefficient = scale * (parameters[:, :, u, v, 0] + 1j * parameters[:, :, u, v, 1])
            picture += mirrored * (coefficient[:, :, None, None] * wave).real
    return picture / 4


@pytest.mark.parametrize(("height", "width"), [(8, 6), (7, 9), (12, 12)])
def test_fft_is_a_sum_of_waves_in_decorrelated_colours(height: int, width: int) -> None:
    image = FFT(_starts([0, 1]), (3, height, width))
    image.parameters.data.normal_(std=1.0, generator=torch.Generator().manual_seed(5))
    expected = _sigmoid(_colored(_sum_of_waves(image.parameters.detach().double().numpy(), height, width)))
    assert expected.std() > 0.05
    np.testing.assert_allclose(image().detach().numpy(), expected, atol=2e-6)


def test_pixels_in_decorrelated_and_in_plain_colours() -> None:
    for decorrelate in (True, False):
        image = Pixel(_starts([0, 1]), (3, 5, 4), decorrelate)
        image.parameters.data.normal_(generator=torch.Generator().manual_seed(5))
        raw = image.parameters.detach().double().numpy()
        expected = _sigmoid(_colored(raw) if decorrelate else raw)
        np.testing.assert_allclose(image().detach().numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("name", PARAMETERIZATIONS)
@pytest.mark.parametrize("channels", [1, 4])
def test_other_than_three_channels_have_no_colour_matrix(name: str, channels: int) -> None:
    image = PARAMETERIZATIONS[name](_starts([0]), (channels, 8, 8))
    np.testing.assert_allclose(image().detach(), torch.sigmoid(image.unbounded()).detach(), atol=1e-7)
    assert image().shape == (1, channels, 8, 8)


@pytest.mark.parametrize("name", PARAMETERIZATIONS)
def test_a_start_has_the_stated_deviation_and_is_near_grey(name: str) -> None:
    image = PARAMETERIZATIONS[name](_starts(range(3)), (3, 64, 64))
    assert image.parameters.std().item() == pytest.approx(0.01, rel=0.02)
    assert (image() - 0.5).abs().max() < 0.2
    assert not torch.equal(image.parameters[0], image.parameters[1])


@pytest.mark.parametrize("name", PARAMETERIZATIONS)
@pytest.mark.parametrize("size", [61, 64])
def test_pictures_and_gradients_do_not_depend_on_place_in_the_batch(name: str, size: int) -> None:
    """61: nothing is a multiple of a vector register, so remainders fall in the middle of pictures."""
    seeds = list(range(8))
    one, other = (PARAMETERIZATIONS[name](_starts(s), (3, size, size)) for s in (seeds, seeds[::-1]))
    for image in (one, other):
        image.parameters.data *= 100  # away from 0.5, where last bits of a sigmoid agree
    weight = torch.randn(8, 3, size, size, generator=torch.Generator().manual_seed(1))
    (one() * weight).sum().backward()
    (other() * weight.flip(0)).sum().backward()
    assert torch.equal(one(), other().flip(0))
    assert one.parameters.grad is not None
    assert other.parameters.grad is not None
    assert torch.equal(one.parameters.grad, other.parameters.grad.flip(0))


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
    x[0, 0, 20, 45] = 1.0  # 15 right of the centre
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
    announced = transforms.sizes(DEFAULT, 40)
    x = torch.rand(1, 3, 40, 40)
    shapes = {compose(DEFAULT, x, _rng(seed)).shape[2:] for seed in range(200)}
    assert {size for shape in shapes for size in shape} == announced
    assert announced == {int((1 + (i - 5) / 50) * 56) - 4 for i in range(11)}


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


def _activations() -> Tensor:
    return torch.randn(4, 5, 6, 7, generator=torch.Generator().manual_seed(0))


def test_channel_is_the_mean_over_positions_and_neuron_one_of_them() -> None:
    x = _activations()
    array, channels = x.numpy(), [3, 0, 4, 3]
    rows = np.arange(4)
    np.testing.assert_allclose(objectives.channel("l", channels)(x), array[rows, channels].mean((1, 2)), rtol=1e-5)
    np.testing.assert_allclose(objectives.channel("l", 2)(x), array[:, 2].mean((1, 2)), rtol=1e-5)
    np.testing.assert_array_equal(objectives.neuron("l", channels)(x), array[rows, channels, 3, 3])
    np.testing.assert_array_equal(objectives.neuron("l", 1, y=0, x=6)(x), array[:, 1, 0, 6])


@pytest.mark.parametrize("kind", objectives.KINDS)
def test_an_element_reads_its_own_activations_only(kind: str) -> None:
    x = _activations().requires_grad_()
    objectives.KINDS[kind]("l", [1, 2, 3, 4])(x)[2].backward()
    assert x.grad is not None
    assert x.grad[2, 3].abs().sum() > 0
    x.grad[2, 3] = 0
    assert not x.grad.any()


def test_objectives_add_subtract_and_scale() -> None:
    x = _activations()
    a, b = objectives.channel("l", 1), objectives.neuron("l", 2)
    mixed = 2 * a - b * 0.5 + 3 - 1.0
    np.testing.assert_allclose(mixed(x), 2 * a(x).numpy() - 0.5 * b(x).numpy() + 2, rtol=1e-5)
    np.testing.assert_array_equal((-a)(x), -a(x))
    with pytest.raises(UsageError, match="one layer"):
        a + objectives.channel("other", 1)


def test_names_of_units() -> None:
    assert objectives.parse("layer1.0.relu_1:12") == ("layer1.0.relu_1", 12)
    for wrong in ("layer1", "layer1:", ":3", "layer1:-1", "layer1:x"):
        with pytest.raises(UsageError, match="LAYER:CHANNEL"):
            objectives.parse(wrong)
