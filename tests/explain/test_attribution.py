"""Attribution on networks of every family: the suffix, captum's numbers, completeness, and what ablation measures."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from captum.attr import FeatureAblation, InputXGradient, IntegratedGradients
from torch import Tensor, nn

from pipeline.explain import State, Suffix, Target, ablated, attribute, replaced
from pipeline.explain.attribution import AT_ONCE
from pipeline.models import Model, open_model
from store.errors import UsageError

FAMILIES = (
    "alexnet", "resnet", "densenet", "mobilenet_v3", "convnext", "shufflenet", "googlenet", "inception", "vit", "swin",
)  # fmt: skip
PICTURES = 3


@cache
def _model(name: str) -> Model:
    model = open_model(f"python:support.small_networks:{name}")
    if name == "vit":  # torchvision starts its classifier at zero
        head = model.network.get_submodule("heads.head")
        torch.nn.init.normal_(head.weight, std=0.1, generator=torch.Generator().manual_seed(0))
    return model


def _pictures(model: Model, seed: int = 0) -> Tensor:
    shape = (PICTURES, *model.graph.input_shape[1:])
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def _some_layers(model: Model, most: int = 5) -> list[str]:
    names = [layer.name for layer in model.graph.layers()]
    return [names[i] for i in np.unique(np.linspace(0, len(names) - 2, most).round().astype(int))]


def _target(model: Model) -> Target:
    return Target(torch.tensor([0, 3, 5]), torch.tensor([1, 2, 0]))


@cache
def _suffix(name: str, layer: str) -> Suffix:
    model = _model(name)
    return Suffix(model, model.graph.layers([layer])[0])


PLACES = [(name, layer) for name in FAMILIES for layer in _some_layers(_model(name))]


@pytest.mark.parametrize(("name", "layer"), PLACES)
def test_a_suffix_ends_as_the_network_does(name: str, layer: str) -> None:
    model, suffix = _model(name), _suffix(name, layer)
    pixels = _pictures(model)
    state = suffix.state(pixels)
    before = [state.value.clone(), *(x.clone() for x in state.beside if isinstance(x, Tensor))]
    with torch.no_grad():
        x = model.preprocess.normalize(pixels.float() / 255)
        wanted = model.graph.module(x.contiguous(memory_format=model.graph.memory_format))
        turns = torch.tensor([2, 0, 0, 1, 2, 1, 0])  # more rows than pictures, in another order
        found = suffix.logits(state, state.value[turns], turns)
    assert torch.allclose(found, wanted[turns], rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))
    after = [state.value, *(x for x in state.beside if isinstance(x, Tensor))]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))  # nothing was changed in place


class _Score(nn.Module):
    """A module that maps values of a layer to the score of each row. Row i belongs to picture i % PICTURES."""

    def __init__(self, suffix: nn.Module, target: Target) -> None:
        super().__init__()
        self.suffix, self.target = suffix, target

    def forward(self, value: Tensor) -> Tensor:
        return self.target.score(self.suffix(value), torch.arange(len(value)) % PICTURES)


@pytest.mark.parametrize(("name", "layer"), PLACES[::2])
def test_attributions_are_captums(name: str, layer: str) -> None:
    model, suffix = _model(name), _suffix(name, layer)
    state, target = suffix.state(_pictures(model)), _target(model)
    score = _Score(suffix.as_module(state), target)
    value = state.value.clone().requires_grad_()
    low = torch.linspace(-0.1, 0.2, state.value[0].numel()).reshape(1, *state.value.shape[1:])

    def same(ours: Tensor, theirs: Tensor) -> bool:
        theirs = suffix.map(theirs.detach())
        return torch.allclose(ours, theirs, rtol=0, atol=1e-5 * float(theirs.abs().max()))

    assert same(attribute(suffix, state, target, "gradient").values, InputXGradient(score).attribute(value))
    for baseline in (None, low):
        theirs = IntegratedGradients(score).attribute(
            value, baselines=0 if baseline is None else baseline.expand_as(value), n_steps=20, method="gausslegendre"
        )
        assert same(attribute(suffix, state, target, "integrated", baseline, steps=20).values, theirs)


def test_ablation_is_captums() -> None:
    suffix = _suffix("resnet", "layer3.0.relu_2")
    state, target = suffix.state(_pictures(_model("resnet"))), _target(_model("resnet"))
    channels = suffix.layer.channels
    units = torch.arange(channels).reshape(1, -1, 1, 1).expand(1, *state.value.shape[1:])
    low = torch.full_like(state.value, 0.1)
    theirs = FeatureAblation(_Score(suffix.as_module(state), target)).attribute(
        state.value, baselines=low, feature_mask=units
    )
    masks = torch.eye(channels, dtype=torch.bool)[:, :, None, None]
    assert channels > AT_ONCE  # in several parts
    for picture in range(PICTURES):
        ours = ablated(suffix, state, target, picture, masks, torch.full((channels,), 0.1))
        assert torch.allclose(ours.float(), theirs[picture, :, 0, 0], atol=1e-5 * float(theirs.abs().max()))


@pytest.mark.parametrize("name", FAMILIES)
def test_integrated_gradients_add_up(name: str) -> None:
    model = _model(name)
    for layer in _some_layers(model)[2:]:
        suffix = _suffix(name, layer)
        state, target = suffix.state(_pictures(model)), _target(model)
        baseline = state.value.mean(0, keepdim=True)
        found = attribute(suffix, state, target, baseline=baseline)
        assert found.complete.all(), (layer, found.residue, found.difference)
        with torch.no_grad():
            everyone = torch.arange(PICTURES)
            low = target.score(suffix.logits(state, baseline.expand_as(state.value), everyone).double(), everyone)
        assert torch.allclose(found.baseline_score, low)
        total = found.values.double().sum((1, 2, 3)) + found.elsewhere
        assert torch.allclose(total - found.residue, found.score - low)


def test_what_does_not_add_up_is_reported() -> None:
    """From zero, the tokens of a vision transformer meet a norm that magnifies them, so that no line is fine enough."""
    suffix = _suffix("vit", "encoder.layers.encoder_layer_0.add_1")
    state, target = suffix.state(_pictures(_model("vit"))), _target(_model("vit"))
    found = attribute(suffix, state, target)
    assert not found.complete.any()
    assert found.steps.tolist() == [256] * PICTURES
    assert (found.residue.abs() > 0.01 * found.difference.abs()).all()


def test_steps_double_until_attributions_add_up() -> None:
    suffix = _suffix("resnet", "layer1.0.relu")
    state, target = suffix.state(_pictures(_model("resnet"))), _target(_model("resnet"))
    few = attribute(suffix, state, target, steps=1)
    found = attribute(suffix, state, target)
    assert few.steps.tolist() == [1, 1, 1]
    assert (found.residue.abs() < few.residue.abs()).all()
    assert set(found.steps.tolist()) <= {16, 32, 64, 128, 256}


def test_where_the_suffix_is_linear_every_method_is_exact() -> None:
    """After the last block there is only a mean and a linear layer: each attribution is what ablation measures."""
    suffix = _suffix("resnet", "layer4.0.relu_2")
    state, target = suffix.state(_pictures(_model("resnet"))), _target(_model("resnet"))
    channels = suffix.layer.channels
    masks = torch.eye(channels, dtype=torch.bool)[:, :, None, None]
    measured = torch.stack([ablated(suffix, state, target, picture, masks) for picture in range(PICTURES)])
    for method in ("gradient", "integrated", "patching"):
        found = attribute(suffix, state, target, method)
        assert torch.allclose(found.values.double().sum((2, 3)), measured, atol=1e-5)
        assert (found.steps == (16 if method == "integrated" else 1)).all()


def test_a_baseline_of_units_and_parts_that_are_replaced() -> None:
    suffix = _suffix("vit", _some_layers(_model("vit"))[2])
    state, target = suffix.state(_pictures(_model("vit"))), _target(_model("vit"))
    assert suffix.layer.layout.kind == "tokens"
    means = torch.linspace(-1, 1, suffix.layer.channels)
    found = attribute(suffix, state, target, baseline=means)
    maps = suffix.map(state.value)
    at_baseline = means[None, :, None, None].expand_as(maps)
    fall = torch.stack([replaced(suffix, state, target, p, at_baseline[p : p + 1])[0] for p in range(PICTURES)])
    # the class token is at zero for the baseline of all values, and stays as it is when the map is replaced
    assert found.elsewhere.abs().max() > 0
    assert torch.allclose(suffix.map(suffix.with_map(state.value, at_baseline)), at_baseline)
    own = replaced(suffix, state, target, 1, maps[1:2])
    assert float(own) == pytest.approx(0, abs=1e-6)
    assert fall.abs().max() > 0


def test_what_cannot_be_explained_is_said() -> None:
    model = _model("resnet")
    suffix = _suffix("resnet", "layer3.0.relu_2")
    state, target = suffix.state(_pictures(model)), _target(model)
    with pytest.raises(UsageError, match="did you mean integrated"):
        attribute(suffix, state, target, "integratd")
    with pytest.raises(UsageError, match="a baseline of 3 values: layer layer3"):
        attribute(suffix, state, target, baseline=torch.zeros(3))
    with pytest.raises(UsageError, match="against zero: take patching"):
        attribute(suffix, state, target, "gradient", baseline=torch.zeros(suffix.layer.channels))
    with pytest.raises(UsageError, match="a baseline of shape"):
        attribute(suffix, state, target, baseline=torch.zeros(1, 2, 3, 3))


def _published(name: str, inputs: list[float]) -> tuple[Suffix, State, Target]:
    model = open_model(f"python:support.published_examples:{name}")
    suffix = Suffix(model, model.graph.layers(["inputs"])[0])
    return suffix, State(torch.tensor([inputs]), ()), Target(torch.tensor([0]))


def test_numbers_that_captum_publishes() -> None:
    suffix, state, target = _published("basic", [3.0, 1.0])
    for method, wanted in (("integrated", [1.5, -0.5]), ("gradient", [3, -1])):
        found = attribute(suffix, state, target, method).values[0, :, 0, 0]
        assert found.tolist() == pytest.approx(wanted, abs=0.02)
    suffix, state, target = _published("multilayer", [20.0, 50.0, 30.0])
    masks = torch.tensor([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0]], dtype=torch.bool)[:, :, None, None]
    assert ablated(suffix, state, target, 0, masks).tolist() == [80, 200, 120, 280]
