"""Rendering on a real network: the objective rises, other pictures change no bit, and the network is unchanged."""

import copy
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline.featurevis import Picture, Renderer, Rendering, Settings, objectives, render, render_units
from pipeline.graph import Layer
from pipeline.models import Model, Preprocess
from store.errors import UsageError

SMALL = Settings(size=48, steps=10, batch=4)
LAYERS = ("blocks.1.1.add", "blocks.3.0.bn1", "classifier")


@pytest.fixture(scope="module")
def model(small_model: Model) -> Model:
    return small_model


def _layer(model: Model, name: str) -> Layer:
    return model.graph.layers([name])[0]


def _values(model: Model, name: str, pictures: Sequence[Picture], steps: int, kind: str = "channel") -> Rendering:
    moves = "none" if kind == "neuron" else "default"  # a shift by one pixel makes it another position
    settings = Settings(size=64, steps=steps, batch=len(pictures), transforms=moves)
    return Renderer(model, _layer(model, name), settings).render(pictures, kind)


@pytest.mark.parametrize(("name", "kind"), [*((name, "channel") for name in LAYERS), (LAYERS[0], "neuron")])
def test_a_few_steps_raise_the_objective(model: Model, name: str, kind: str) -> None:
    pictures = [Picture(channel) for channel in (1, 5, 17)]
    before, after = (_values(model, name, pictures, steps, kind) for steps in (0, 20))
    assert (after.values > before.values).all()
    assert after.values.mean() > before.values.mean() + 0.3
    assert kind == "neuron" or (after.transformed > before.transformed).all()


@pytest.mark.parametrize("name", ["blocks.1.1.add", "classifier"])
def test_the_negative_direction_lowers_it(model: Model, name: str) -> None:
    pictures = [Picture(channel, "negative") for channel in (1, 5, 17)]
    before, after = (_values(model, name, pictures, steps).values for steps in (0, 20))
    assert (after < before - 0.3).all()


def test_pixels_and_the_models_own_size_raise_it_too(model: Model) -> None:
    layer = _layer(model, "blocks.1.1.add")
    for changed in ({"parameterization": "pixel"}, {"input": "model"}, {"transforms": "none", "color": "plain"}):
        rendered = []
        for steps in (0, 10):
            settings = Settings(**{"size": 64, "steps": steps, "batch": 2, **changed})
            rendered.append(Renderer(model, layer, settings).render([Picture(3), Picture(5)]).values)
        assert (rendered[1] > rendered[0] + 0.3).all(), changed


@pytest.mark.parametrize("name", LAYERS)
def test_a_picture_is_the_same_in_any_company_and_place(model: Model, name: str) -> None:
    """This also holds at a size where nothing is a multiple of a vector register."""
    settings = Settings(size=45, steps=4, batch=4)
    renderer = Renderer(model, _layer(model, name), settings)
    pictures = [Picture(3), Picture(5, "negative"), Picture(3, repeat=1), Picture(7)]
    values: dict[str, list[Tensor]] = {"full": [], "reversed": [], "alone": [], "pair": []}
    full = renderer.render(pictures, on_step=lambda _, v: values["full"].append(v))
    turned = renderer.render(pictures[::-1], on_step=lambda _, v: values["reversed"].append(v))
    alone = renderer.render([pictures[1]], on_step=lambda _, v: values["alone"].append(v))
    pair = renderer.render([Picture(11), pictures[1]], on_step=lambda _, v: values["pair"].append(v))
    expected = torch.stack(values["full"])
    assert torch.equal(expected, torch.stack(values["reversed"]).flip(1))
    assert torch.equal(expected[:, 1], torch.stack(values["alone"])[:, 0])
    assert torch.equal(expected[:, 1], torch.stack(values["pair"])[:, 1])
    for other, mine, its in ((turned, slice(None, None, -1), slice(None)), (alone, slice(0, 1), slice(1, 2))):
        assert np.array_equal(other.images[mine], full.images[its])
        assert np.array_equal(other.values[mine], full.values[its])
    assert np.array_equal(pair.images[1], full.images[1])
    assert len({picture.tobytes() for picture in full.images}) == 4  # another repeat or direction gives another picture


def test_units_are_rendered_in_order_over_batches(model: Model) -> None:
    layer, settings = _layer(model, "blocks.1.1.add"), Settings(size=32, steps=3, batch=3)
    steps: list[int] = []
    both = ("positive", "negative")
    done = render_units(model, layer, [2, 9], both, settings, repeats=2, on_step=lambda step, _: steps.append(step))
    assert done.images.shape == (8, 32, 32, 3)
    assert done.images.dtype == np.uint8
    assert (done.values.dtype, done.values.shape) == (np.dtype(np.float32), (8,))
    assert steps == [0, 1, 2] * 3
    order = [Picture(c, d, r) for c in (2, 9) for d in both for r in (0, 1)]
    for i in (1, 4, 7):
        one = Renderer(model, layer, settings).render([order[i]])
        assert np.array_equal(one.images[0], done.images[i])
        assert one.values[0] == done.values[i]


def test_a_notebook_gets_the_picture_that_the_stage_gets(model: Model, capsys: pytest.CaptureFixture[str]) -> None:
    layer = _layer(model, "blocks.1.1.add")
    stage = render_units(model, layer, [2], ["negative"], SMALL, repeats=2)
    named = {"size": 48, "steps": 10, "batch": 4, "direction": "negative", "repeats": 2}
    book = render(model, "blocks.1.1.add:2", **named)
    assert np.array_equal(book.images, stage.images)
    assert np.array_equal(book.values, stage.values)
    assert "10/10" in capsys.readouterr().err


def test_values_are_the_networks_own_on_the_stored_picture(model: Model) -> None:
    """The expected values come from the whole network, without folding, at its input size."""
    renderer = Renderer(model, _layer(model, "classifier"), SMALL)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in renderer.network.plain.modules())
    done = renderer.render([Picture(1), Picture(5)])
    pictures = torch.from_numpy(done.images).permute(0, 3, 1, 2).double() / 255
    large = nn.functional.interpolate(pictures, (64, 64), mode="bilinear").float()
    with torch.no_grad():
        logits = model.network(model.preprocess.normalize(large))
    np.testing.assert_allclose(done.values, logits[[0, 1], [1, 5]], rtol=1e-3, atol=1e-3)


def test_a_sum_of_objectives_is_rendered(model: Model) -> None:
    objective = objectives.channel("blocks.1.1.add", 3) - 0.5 * objectives.channel("blocks.1.1.add", 4)
    before, after = (render(model, objective, size=64, steps=steps, progress=False).values[0] for steps in (0, 12))
    assert after > before + 0.3


def test_the_network_is_left_as_it_was(model: Model) -> None:
    network = model.network
    state, code = copy.deepcopy(network.state_dict()), model.graph.module.code
    layout = {name: (p.data_ptr(), p.stride()) for name, p in network.named_parameters()}
    training = [module.training for module in network.modules()]
    random = torch.random.get_rng_state()
    render(model, "blocks.3.0.bn1:2", size=32, steps=18, progress=False)
    assert torch.equal(torch.random.get_rng_state(), random)
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    assert layout == {name: (p.data_ptr(), p.stride()) for name, p in network.named_parameters()}
    assert model.graph.module.code == code
    for module in [*network.modules(), *model.graph.module.modules()]:
        assert not [*module._forward_hooks, *module._forward_pre_hooks, *module._backward_hooks]
    assert training == [module.training for module in network.modules()]
    assert not any(p.requires_grad or p.grad is not None for p in network.parameters())


class _Patches(nn.Module):
    """Patches of 8 pixels with a table of positions, as in a ViT, so the input size is fixed after `embed`."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.mix = nn.Conv2d(channels, 6, 8, 8), nn.Linear(6, 5)
        self.place = nn.Parameter(torch.randn(1, 16, 6))

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.embed(x).flatten(2).transpose(1, 2) + self.place
        return self.mix(tokens).mean(1)


def _patches(channels: int) -> Model:
    network = _Patches(channels).eval().requires_grad_(False)
    preprocess = Preprocess(32, 32, 32, mean=(0.5,) * channels, std=(0.25,) * channels)
    return Model("patches", "python:patches", "random:0", "python", network, preprocess, None, "patches")


@pytest.mark.parametrize("channels", [1, 3])
def test_a_network_of_one_size_sees_its_own(channels: int, capfd: pytest.CaptureFixture[str]) -> None:
    model = _patches(channels)
    strides = [p.stride() for p in model.network.parameters()]
    layers = {layer.name: layer for layer in model.graph.layers("all")}
    settings = Settings(size=40, steps=8, batch=2, learning_rate=0.5, input="canvas")
    inputs = {name: Renderer(model, layer, settings).input for name, layer in layers.items()}
    assert inputs["embed"] == "canvas"
    assert inputs["mix"] == "model"
    assert capfd.readouterr() == ("", "")
    for name in ("embed", "mix"):
        pair = [Picture(1), Picture(1, "negative")]
        done = Renderer(model, layers[name], settings).render(pair)
        assert done.images.shape == (2, 40, 40, channels)
        assert strides == [p.stride() for p in model.network.parameters()]
        assert done.values[0] > done.values[1] + 0.05


def test_errors_name_what_is_wrong(model: Model) -> None:
    layer = _layer(model, "blocks.1.1.add")
    with pytest.raises(UsageError, match=r"blocks\.1\.1\.add:24: layer [^ ]+ has channels 0 to 23"):
        render(model, "blocks.1.1.add:24")
    with pytest.raises(UsageError, match=r"blocks\.1\.1\.ad"):
        render(model, "blocks.1.1.ad:3")
    with pytest.raises(UsageError, match="matches 2 layers"):
        render(model, objectives.channel("blocks.1.[01].bn1", 3))
    with pytest.raises(UsageError, match="direction = 'up': must be one of positive, negative"):
        render(model, "blocks.1.1.add:3", direction="up", progress=False)
    with pytest.raises(UsageError, match="size = 0: must be at least 1"):
        Settings(size=0)
    with pytest.raises(UsageError, match="parameterization = 'gan': must be one of fft, pixel, laplacian"):
        Settings(parameterization="gan")
    with pytest.raises(UsageError, match="5 pictures in a batch of 4"):
        Renderer(model, layer, SMALL).render([Picture(0)] * 5)
