"""Parameterizations: their pictures and starts, independence of the place in the batch, and ascent through each."""

from __future__ import annotations

import importlib
import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from skimage import data

from pipeline.featurevis import render
from pipeline.featurevis.parameterizations import (
    CPPN,
    FFT,
    PARAMETERIZATIONS,
    LaplacianPyramid,
    Maco,
    Parameterization,
    Pixel,
    Shared,
    lowres,
    spectrum,
)
from pipeline.featurevis.parameterizations.pyramid import SHARED
from pipeline.models import Model
from store.errors import UsageError


def _starts(seeds: Sequence[int]) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def _move(image: Parameterization, sd: float) -> None:
    """Move the parameters away from the start, which is too close to grey to show what a picture is made of."""
    generator = torch.Generator().manual_seed(5)
    for parameter in image.parameters:
        parameter.data.normal_(std=sd, generator=generator)


def _sigmoid(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return 1 / (1 + np.exp(-x))


def _colored(x: NDArray[np.float64]) -> NDArray[np.float64]:
    matrix = np.array([[0.26, 0.09, 0.02], [0.27, 0.00, -0.05], [0.27, -0.09, 0.03]])
    matrix /= np.sqrt((matrix**2).sum(0)).max()
    return np.einsum("rc,nchw->nrhw", matrix, x)


def _sum_of_waves(parameters: NDArray[np.float64], height: int, width: int) -> NDArray[np.float64]:
    """Add a wave over the picture for each coefficient. A column that is not its own mirror image counts twice."""
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
    _move(image, 1.0)
    expected = _sigmoid(_colored(_sum_of_waves(image.parameters[0].detach().double().numpy(), height, width)))
    assert expected.std() > 0.05
    np.testing.assert_allclose(image().detach().numpy(), expected, atol=2e-6)


def test_pixels_in_each_kind_of_colour() -> None:
    for color in ("decorrelated", "plain", "grayscale"):
        image = Pixel(_starts([0, 1]), (3, 5, 4), color)
        _move(image, 1.0)
        raw = image.parameters[0].detach().double().numpy()
        expected = {
            "decorrelated": lambda raw=raw: _colored(raw), "plain": lambda raw=raw: raw,
            "grayscale": lambda raw=raw: np.repeat(raw, 3, 1),
        }[color]()  # fmt: skip
        np.testing.assert_allclose(image().detach().numpy(), _sigmoid(expected), atol=1e-6)


def test_a_laplacian_pyramid_is_a_sum_of_enlarged_pictures() -> None:
    image = LaplacianPyramid(_starts([0]), (1, 16, 24))
    _move(image, 1.0)
    total = np.zeros((16, 24))
    for level, x in enumerate(image.parameters):
        h, w = 16 >> level, 24 >> level
        assert x.shape == (1, 1, h, w)
        rows, columns = np.linspace(0, h - 1, 16), np.linspace(0, w - 1, 24)  # with aligned corners
        across = np.stack([np.interp(columns, np.arange(w), row) for row in x[0, 0].detach().numpy()])
        total += np.stack([np.interp(rows, np.arange(h), column) for column in across.T]).T
    np.testing.assert_allclose(image().detach().numpy()[0, 0], _sigmoid(total), atol=1e-5)


def test_shared_layers_are_common_to_a_group_or_blended_in_it() -> None:
    image = Shared(_starts(range(6)), (3, 32, 32), "plain", group=3)
    image.parameters[0].data.zero_()  # the waves of each picture alone
    blended = [i for i, (pictures, _) in enumerate(SHARED) if pictures == 2]
    for i in blended:
        image.parameters[1 + i].data.zero_()
    x = image().detach()
    assert torch.equal(x[0], x[1])
    assert torch.equal(x[0], x[2])
    assert not torch.equal(x[0], x[3])
    image.parameters[1 + blended[0]].data.normal_(generator=torch.Generator().manual_seed(1))
    x = torch.logit(image().detach())
    torch.testing.assert_close(x[1], (x[0] + x[2]) / 2, atol=1e-4, rtol=0)
    assert not torch.equal(x[0], x[2])


def test_a_cppn_is_a_network_of_coordinates() -> None:
    image = CPPN(_starts([3, 4]), (3, 5, 7))
    assert torch.equal(image(), torch.full((2, 3, 5, 7), 0.5)), "it begins at an even grey"
    _move(image, 0.3)
    values = [p.detach().double().numpy()[1] for p in image.parameters]
    assert len(values) == 16
    for row, column in ((0, 0), (4, 6), (2, 5)):
        x = np.array([-math.sqrt(3) + row * math.sqrt(3) / 2, -math.sqrt(3) + column * math.sqrt(3) / 3])
        for layer in range(8):
            x = values[2 * layer] @ x + values[2 * layer + 1]
            if layer < 7:
                x = np.concatenate([np.arctan(x) / 0.67, np.arctan(x) ** 2 / 0.6])
        np.testing.assert_allclose(image().detach().numpy()[1, :, row, column], _sigmoid(x), atol=1e-5)


def test_maco_changes_phases_and_never_magnitudes() -> None:
    image = Maco(_starts([0, 1]), (3, 32, 48))
    before = image.unbounded().detach()
    _move(image, 2.0)
    after = image.unbounded().detach()
    assert not torch.allclose(before, after, atol=0.1)
    inner = (slice(None), slice(None), slice(1, 16), slice(1, 24))  # where phases are free: not on the axes of symmetry
    for x in (before, after):
        np.testing.assert_allclose(x.mean((1, 2, 3)), 0, atol=1e-4)
        np.testing.assert_allclose(x.std((1, 2, 3)), 1, rtol=1e-3)
        found = torch.fft.rfft2(x).abs()[inner] / image.magnitude[None][inner]
        np.testing.assert_allclose(found / found.mean((1, 2, 3), keepdim=True), 1, rtol=1e-3)


def _decay(magnitude: torch.Tensor) -> float:
    """Return how fast the magnitude falls with the frequency: minus the slope of the logarithms over octaves."""
    rows, columns = np.fft.fftfreq(magnitude.shape[0]), np.fft.rfftfreq(magnitude.shape[0])
    f = np.hypot(rows[:, None], columns[None])
    octaves = [(f > low) & (f <= 2 * low) for low in (1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4)]
    means = [np.log(magnitude.numpy()[octave]).mean() for octave in octaves]
    return float(-np.polyfit(np.log([f[octave].mean() for octave in octaves]), means, 1)[0])


def test_the_fixed_magnitudes_are_those_of_photographs() -> None:
    """The constants, fitted to 500 ImageNet photographs, resemble the spectrum of other photographs; noise does not."""
    pictures = [x[:224, :224] for x in (data.astronaut(), data.chelsea(), data.coffee(), data.rocket())]
    found = spectrum(torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2) / 255)
    noise = spectrum(torch.rand(4, 3, 224, 224, generator=torch.Generator().manual_seed(0)))
    fixed = Maco(_starts([0]), (3, 224, 224)).magnitude
    for plane in range(3):
        assert _decay(found[plane]) == pytest.approx(_decay(fixed[plane]), abs=0.4)
        assert abs(_decay(noise[plane])) < 0.1


@pytest.mark.parametrize("name", PARAMETERIZATIONS)
@pytest.mark.parametrize("channels", [1, 4])
def test_other_than_three_channels_have_no_colour_matrix(name: str, channels: int) -> None:
    image = PARAMETERIZATIONS[name](_starts([0]), (channels, 8, 8))
    np.testing.assert_allclose(image().detach(), torch.sigmoid(image.unbounded()).detach(), atol=1e-7)
    assert image().shape == (1, channels, 8, 8)


@pytest.mark.parametrize("name", PARAMETERIZATIONS)
def test_alpha_is_one_more_channel_and_grey_is_one_in_all(name: str) -> None:
    image = PARAMETERIZATIONS[name](_starts([0, 1]), (3, 16, 20), "grayscale", alpha=True)
    _move(image, 1.0)
    x = image().detach()
    assert x.shape == (2, 4, 16, 20)
    assert torch.equal(x[:, 0], x[:, 1])
    assert torch.equal(x[:, 0], x[:, 2])
    assert not torch.equal(x[:, 0], x[:, 3])
    colored = PARAMETERIZATIONS[name](_starts([0]), (3, 16, 20), alpha=True)
    assert colored.planes == 4
    plain = colored.unbounded().detach()
    torch.testing.assert_close(colored().detach()[:, 3], torch.sigmoid(plain[:, 3]))


@pytest.mark.parametrize("name", ["fft", "pixel", "laplacian_pyramid", "shared"])
def test_a_start_has_the_stated_deviation_and_is_near_grey(name: str) -> None:
    image = PARAMETERIZATIONS[name](_starts(range(3)), (3, 64, 64))
    assert image.parameters[0].std().item() == pytest.approx(0.01, rel=0.02)
    assert (image() - 0.5).abs().max() < 0.25
    assert not torch.equal(image.parameters[0][0], image.parameters[0][1])


@pytest.mark.parametrize("name", PARAMETERIZATIONS)
@pytest.mark.parametrize("size", [61, 64])
def test_pictures_and_gradients_do_not_depend_on_place_in_the_batch(name: str, size: int) -> None:
    """At size 61 nothing is a multiple of a vector register, so remainders fall in the middle of pictures."""
    seeds = list(range(8))
    one, other = (PARAMETERIZATIONS[name](_starts(s), (3, size, size)) for s in (seeds, seeds[::-1]))
    for image in (one, other):
        for parameter in image.parameters:
            parameter.data *= 100 if name != "cppn" else 1  # away from 0.5, where last bits of a sigmoid agree
    weight = torch.randn(8, 3, size, size, generator=torch.Generator().manual_seed(1))
    (one() * weight).sum().backward()
    (other() * weight.flip(0)).sum().backward()
    assert torch.equal(one(), other().flip(0))
    for mine, its in zip(one.parameters, other.parameters, strict=True):
        assert mine.grad is not None
        assert its.grad is not None
        assert torch.equal(mine.grad, its.grad.flip(0))


@pytest.fixture(scope="module")
def lucent() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module("lucent.optvis.param")


WEIGHT = torch.randn(2, 3, 24, 24, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("color", ["decorrelated", "plain"])
@pytest.mark.parametrize("name", ["fft", "pixel"])
def test_pictures_and_gradients_are_lucents(name: str, color: str, lucent: Any) -> None:
    ours = PARAMETERIZATIONS[name](_starts([0, 1]), (3, 24, 24), color)
    _move(ours, 1.0)
    (theirs,), image = lucent.image(24, batch=2, fft=name == "fft", decorrelate=color == "decorrelated")
    theirs.data.copy_(ours.parameters[0].data)
    torch.testing.assert_close(ours(), image(), atol=2e-6, rtol=0)
    (mine,) = torch.autograd.grad((ours() * WEIGHT).sum(), ours.parameters)
    (its,) = torch.autograd.grad((image() * WEIGHT).sum(), [theirs])
    torch.testing.assert_close(mine, its, atol=1e-4, rtol=1e-4)


def test_pyramids_and_shared_layers_are_made_of_lucents_lowres(lucent: Any) -> None:
    ours = LaplacianPyramid(_starts([0, 1]), (3, 24, 24), "plain")
    _move(ours, 1.0)
    total = torch.zeros(2, 3, 24, 24)
    for level in ours.parameters:
        (low,), enlarge = lucent.lowres_tensor((2, 3, 24, 24), tuple(level.shape))
        low.data.copy_(level.data)
        total = total + enlarge().detach()
    torch.testing.assert_close(ours().detach(), torch.sigmoid(total), atol=1e-5, rtol=0)
    shared = Shared(_starts(range(4)), (3, 32, 32), "plain", group=4)
    _move(shared, 1.0)
    shared.parameters[0].data.zero_()
    total = torch.zeros(4, 3, 32, 32)
    for layer in shared.parameters[1:]:
        (low,), enlarge = lucent.lowres_tensor((4, 3, 32, 32), tuple(layer.shape[1:]))
        low.data.copy_(layer[0].data)
        total = total + enlarge().detach()
    torch.testing.assert_close(shared().detach(), torch.sigmoid(total), atol=1e-5, rtol=0)


@pytest.mark.parametrize("offset", [None, False, True, 3, (0, 5), (True, 2)])
def test_a_lowres_picture_is_moved_as_lucids(offset: Any, lucent: Any) -> None:
    """Lucid pads before the first row and column, mirrored with the edge, and cuts off what is over."""
    ours = lowres(4, offset)(_starts([0, 1]), (3, 24, 32), "plain")
    _move(ours, 1.0)
    (low,), enlarge = lucent.lowres_tensor((2, 3, 24, 32), (2, 3, 6, 8))
    low.data.copy_(ours.parameters[0].data)
    pair = offset if isinstance(offset, tuple) else (offset, offset)
    down, right = (2 if pixels is True else int(pixels or 0) for pixels in pair)
    padded = np.pad(enlarge().detach().numpy(), ((0, 0), (0, 0), (down, 0), (right, 0)), mode="symmetric")
    expected = torch.sigmoid(torch.from_numpy(padded[:, :, :24, :32]))
    torch.testing.assert_close(ours().detach(), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("offset", [-1, 25])
def test_a_picture_is_not_moved_out_of_itself(offset: int) -> None:
    with pytest.raises(UsageError, match="offset"):
        lowres(4, offset)(_starts([0]), (3, 24, 24))()


def test_a_cppn_is_lucents(lucent: Any) -> None:
    ours = CPPN(_starts([0]), (3, 24, 24))
    _move(ours, 0.3)
    theirs, image = lucent.cppn(24)
    for own, its in zip(ours.parameters, theirs, strict=False):
        its.data.copy_(own.data[0].view(its.shape))
    torch.testing.assert_close(ours(), image(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", PARAMETERIZATIONS)
def test_a_few_steps_raise_a_channel_on_a_real_network(name: str, small_model: Model) -> None:
    """How far an ascent gets in a few steps depends on rounding, which differs between processors.

    That it rises does not depend on it.
    """
    rises = []
    for special in ({}, {"alpha": True}, {"color": "grayscale"}):
        both = [
            render(
                small_model, "blocks.1.1.add:5", size=64, steps=steps, parameterization=name, progress=False, **special
            )
            for steps in (0, 40 if name == "cppn" else 16)
        ]
        rises.append(both[1].transformed[0] - both[0].transformed[0])
        assert both[1].images.shape[3] == 3 + bool(special.get("alpha"))
    assert min(rises) > 0, rises


def test_a_parameterization_and_an_optimizer_of_ones_own(small_model: Model) -> None:
    class Dim(Pixel):
        learning_rate = 0.5
        optimizer = "sgd"

        def unbounded(self) -> torch.Tensor:
            return super().unbounded() - 2.0

    done = render(
        small_model, "blocks.1.1.add:5", size=32, steps=0, parameterization=Dim, color="plain", progress=False
    )
    assert 25 < done.images.mean() < 35  # 255 * sigmoid(-2)
    moved = render(
        small_model, "blocks.1.1.add:5", size=64, steps=8, parameterization=Dim, optimizer="adam", progress=False
    )
    still = render(small_model, "blocks.1.1.add:5", size=64, steps=0, parameterization=Dim, progress=False)
    assert moved.values > still.values
    with pytest.raises(UsageError, match="parameterization = 'gan': must be one of fft, pixel"):
        render(small_model, "blocks.1.1.add:5", parameterization="gan")
