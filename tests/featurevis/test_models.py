"""Other kinds of model are rendered without special options, and many renders leave nothing behind."""

from __future__ import annotations

import gc
import linecache
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from pipeline.featurevis import Renderer, Settings, render
from pipeline.models import Model, Preprocess, open_model
from store.errors import UsageError


def test_a_vision_transformer_ends_at_its_own_size() -> None:
    """torchvision's, a small one with random weights. Its position table only allows 64 pixels."""
    model = open_model("python:support.small_networks:vit")
    for name in ("encoder.layers.encoder_layer_0.mlp.1", "encoder.layers.encoder_layer_0.add_1"):
        before, after = (render(model, f"{name}:5", size=32, steps=n, progress=False) for n in (0, 3))
        assert after.input == "model"
        assert after.images.shape == (1, 32, 32, 3)
        assert after.values[0] > before.values[0]


class Digits(nn.Module):
    """A network that takes one channel at 28 pixels and is small enough to be trained in a test."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(1, 8, 5, 2), nn.Conv2d(8, 16, 5, 2)
        self.relu, self.head = nn.ReLU(), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.one(x))
        return self.head(torch.relu(self.two(x)).mean((2, 3)))


def digits() -> tuple[nn.Module, dict[str, object]]:
    """A `python:` factory that trains on scikit-learn's digits, enlarged to 28 pixels."""
    torch.manual_seed(0)
    x, y = load_digits(return_X_y=True)
    pictures = nn.functional.interpolate(torch.tensor(x, dtype=torch.float32).view(-1, 1, 8, 8) / 16, (28, 28))
    network, labels = Digits(), torch.tensor(y)
    optimizer = torch.optim.Adam(network.parameters(), 0.01)
    for step in range(300):
        chosen = slice(step * 100 % 1600, step * 100 % 1600 + 100)
        loss = nn.functional.cross_entropy(network((pictures[chosen] - 0.5) / 0.5), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    described = {"height": 28, "width": 28, "mean": [0.5], "std": [0.5], "labels": [str(i) for i in range(10)]}
    return network, described


def test_a_network_of_one_channel_draws_digits_that_it_recognizes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parent)
    model = open_model("python:test_models:digits")
    done = [render(model, f"class_logit(head, '{digit}')", size=28, steps=64, progress=False) for digit in range(10)]
    assert {d.images.shape for d in done} == {(1, 28, 28, 1)}
    pictures = torch.from_numpy(np.concatenate([d.images for d in done])).permute(0, 3, 1, 2) / 255
    with torch.no_grad():
        answers = model.network(model.preprocess.normalize(pictures)).argmax(1)
    assert (answers == torch.arange(10)).sum() >= 7


class Bands(nn.Module):
    """A network that takes five channels, like a satellite's pictures."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.act = nn.Conv2d(5, 6, 3), nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.conv(x))


def bands() -> tuple[nn.Module, dict[str, object]]:
    return Bands(), {"height": 20, "width": 20, "mean": [0.5] * 5, "std": [0.2] * 5}


def test_a_python_model_of_five_channels_any_canvas_and_its_own_preprocessing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parent)
    model = open_model("python:test_models:bands")
    for size in (9, (40, 24)):
        before, after = (render(model, "act:3", size=size, steps=n, input="canvas", progress=False) for n in (0, 8))
        assert after.images.shape == (1, *((9, 9) if size == 9 else (40, 24)), 5)
        assert after.transformed > before.transformed
        assert after.input == "canvas"
    seen: list[float] = []

    def brightened(x: Tensor) -> Tensor:
        seen.append(float(x.detach().mean()))
        return x + 3.0

    own = render(model, "act:3", size=20, steps=0, preprocess=brightened, transforms="none", progress=False)
    plain = render(model, "act:3", size=20, steps=0, preprocess=lambda x: x, transforms="none", progress=False)
    assert seen[-1] == pytest.approx(0.5, abs=0.02)
    weight, bias = model.network.conv.weight, model.network.conv.bias
    assert isinstance(weight, Tensor)
    assert isinstance(bias, Tensor)
    for done, added in ((own, 3.0), (plain, 0.0)):
        x = torch.from_numpy(done.images).permute(0, 3, 1, 2) / 255 + added
        expected = nn.functional.gelu(nn.functional.conv2d(x, weight, bias))[0, 3].mean()
        assert done.values[0] == pytest.approx(float(expected), abs=1e-4)
    with pytest.raises(UsageError, match="takes 5 channels"):
        model.preprocess.pixels(__import__("PIL.Image").Image.new("RGB", (30, 30)))


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_finds_the_same_and_pictures_stay_float32(precision: str, small_model: Model) -> None:
    before, full, half = (
        render(small_model, "blocks.1.1.add:5", size=64, steps=n, precision=p, progress=False)
        for n, p in ((0, "float32"), (16, "float32"), (16, precision))
    )
    assert half.transformed > before.transformed + 0.5 * (full.transformed - before.transformed)
    layer = small_model.graph.layers(["blocks.1.1.add"])
    renderer = Renderer(small_model, layer, Settings(size=64, batch=1, precision=precision))
    assert {p.dtype for p in renderer.network.plain.parameters()} == {getattr(torch, precision)}
    assert next(small_model.network.parameters()).dtype == torch.float32


def test_two_hundred_renders_leave_no_hook_and_no_memory() -> None:
    """Each render copies the network. Count the copies and tensors that are still alive and the sources fx keeps."""
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Conv2d(8, 4, 3))
    network.eval().requires_grad_(False)
    plain = Preprocess(24, 24, 24, mean=(0.5,) * 3, std=(0.25,) * 3)
    model = Model("tiny", "python:tiny", "random:0", "python", network, plain, None, "tiny")

    def alive() -> tuple[int, int, int]:
        gc.collect()
        tensors = sum(issubclass(type(found), Tensor) for found in gc.get_objects())
        kept = torch.fx.graph_module._loader.eval_cache
        return tensors, len(kept), sum(key.startswith("<eval_with_key>") for key in linecache.cache)

    before: tuple[int, int, int] | None = None
    renderers: list[weakref.ref[nn.Module]] = []
    for number in range(200):
        render(model, f"2:{number % 8}", size=16, steps=1, seed=number, progress=False)
        if number == 4:
            before = alive()
        if number % 20 == 10:
            renderer = Renderer(model, model.graph.layers(["2"]), Settings(size=16, batch=1))
            renderers.append(weakref.ref(renderer.network.plain))
            del renderer
    assert before is not None
    now = alive()  # fewer may be alive: earlier tests' garbage goes meanwhile
    assert all(count <= first for count, first in zip(now, before, strict=True)), (now, before)
    assert not any(made() is not None for made in renderers)
    for module in [*network.modules(), *model.graph.module.modules()]:
        assert not [*module._forward_hooks, *module._forward_pre_hooks, *module._backward_hooks]


def test_what_is_given_to_the_notebook_can_be_resized(small_model: Model) -> None:
    """The shape of the canvas may differ from that of the network's input."""
    wide = replace(small_model, preprocess=replace(small_model.preprocess, width=96))
    done = render(wide, "blocks.1.1.add:5", size=(32, 48), steps=2, input="model", progress=False)
    assert done.images.shape == (1, 32, 48, 3)
    assert done.input == "model"
