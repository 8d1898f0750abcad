"""A trace computes what the network does: what tracing misses is found when a network is opened.

Each network here is a small one with one difference that a trace, folding or arranging used to miss. What is measured
must be what the network itself gives, or opening it is an error of one line.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from pipeline.graph import build
from pipeline.models import Model, checked, open_model
from pipeline.models.preprocessing import from_mapping
from pipeline.scan.measurer import Measurer
from store.errors import Notice, UsageError

SIZE = 32
PIXELS = np.random.default_rng(0).integers(0, 256, (2, 3, SIZE, SIZE), dtype=np.uint8)
PICTURES = (torch.from_numpy(PIXELS).float() / 255 - 0.5) / 0.5
Make = Callable[[], nn.Module]
DIFFERENCES: dict[str, Make] = {}
REFUSED: dict[str, Make] = {}


class Small(nn.Module):
    """Two convolutions, a norm and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv2, self.fc = nn.Conv2d(8, 12, 3, stride=2, padding=1), nn.Linear(12, 4)

    def features(self, x: Tensor) -> Tensor:
        return F.relu(self.conv2(F.relu(self.bn1(self.conv1(x)))))

    def forward(self, x: Tensor) -> Any:
        return self.fc(self.features(x).mean((2, 3)))


class Middle(nn.Module):
    """A convolution, used as `forward_as` says."""

    def __init__(self, forward_as: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.forward_as, self.conv = forward_as, nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_as(self, x)


def _whole(forward: Callable[[Any, Tensor], Any], **parts: Callable[[], nn.Module]) -> Make:
    """A network with this forward."""

    def make() -> nn.Module:
        network = type("Odd", (Small,), {"forward": forward})()
        for name, part in parts.items():
            setattr(network, name, part())
        return network

    return make


def _middle(forward: Callable[[Any, Tensor], Tensor]) -> Make:
    """A network with a submodule that has this forward."""
    return _whole(
        lambda self, x: self.fc(F.relu(self.conv2(self.middle(F.relu(self.bn1(self.conv1(x)))))).mean((2, 3))),
        middle=lambda: Middle(forward),
    )


def _replaced(part: Callable[[], nn.Module]) -> Make:
    """A network with a module of this class after its norm."""
    return _whole(
        lambda self, x: self.fc(F.relu(self.conv2(self.part(self.bn1(self.conv1(x))))).mean((2, 3))), part=part
    )


def _changed(change: Callable[[Any], object]) -> Make:
    """A network after some change."""

    def make() -> nn.Module:
        network = Small()
        change(network)
        return network

    return make


def difference(make: Callable[[], Make]) -> None:
    DIFFERENCES[make.__name__] = make()


def refused(make: Callable[[], Make]) -> None:
    REFUSED[make.__name__] = make()


@difference
def forward_of_the_instance() -> Make:
    return _changed(lambda n: setattr(n, "forward", lambda x: n.fc(n.features(x).amax((2, 3)))))


@difference
def hook_of_the_network() -> Make:
    return _changed(lambda n: n.register_forward_hook(lambda m, x, y: y * 2))


@difference
def pre_hook_of_the_network() -> Make:
    return _changed(lambda n: n.register_forward_pre_hook(lambda m, x: (x[0] * 2,)))


@difference
def hook_of_a_norm() -> Make:
    return _changed(lambda n: n.bn1.register_forward_hook(lambda m, x, y: y * 2))


@difference
def hook_of_a_convolution() -> Make:
    return _changed(lambda n: n.conv1.register_forward_hook(lambda m, x, y: y + 1))


@difference
def pre_hook_of_a_linear_layer() -> Make:
    return _changed(lambda n: n.fc.register_forward_pre_hook(lambda m, x: (x[0].abs(),)))


class _Five(nn.Module):
    def forward(self, w: Tensor) -> Tensor:
        return w * 5


@difference
def parametrization_of_the_network() -> Make:
    def change(network: nn.Module) -> None:
        network.scale = nn.Parameter(torch.full((1,), 3.0))
        parametrize.register_parametrization(network, "scale", _Five())
        network.register_forward_hook(lambda m, x, y: y * m.scale)

    return _changed(change)


@difference
def parametrized_convolution() -> Make:
    return _changed(lambda n: parametrizations.weight_norm(n.conv1))


@difference
def weights_made_by_a_hook() -> Make:
    return _changed(lambda n: nn.utils.spectral_norm(n.conv2))


@difference
def asks_whether_it_is_a_tensor() -> Make:
    return _whole(lambda self, x: self.fc((y * 2 if isinstance(y := self.features(x), Tensor) else y).mean((2, 3))))


@difference
def asks_whether_a_size_is_a_tensor() -> Make:
    def forward(self: Any, x: Tensor) -> Tensor:
        y = self.features(x)
        height = y.shape[2] * 1
        height = height.item() if isinstance(height, Tensor) else height
        return self.fc(y.sum((2, 3)) / height)

    return _whole(forward)


@difference
def submodule_asks_for_the_type() -> Make:
    return _middle(lambda self, x: self.conv(x) * (2 if type(x) is Tensor else 1))


@difference
def submodule_asks_for_an_attribute() -> Make:
    return _middle(lambda self, x: self.conv(x) * (1 if hasattr(x, "no_tensor_has_this") else 2))


def _channels(x: Tensor) -> int:
    try:
        return int(x.shape[1])
    except Exception:
        return 1


@difference
def submodule_tries_a_number() -> Make:
    return _middle(lambda self, x: self.conv(x) * _channels(x))


def _autocast(self: Any, x: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return self.conv(x).float()


@difference
def submodule_under_autocast() -> Make:
    return _middle(_autocast)


def _table(self: Any, x: Tensor) -> Tensor:
    try:
        return self.conv(x + torch.ones(8, SIZE, SIZE))
    except RuntimeError:  # a picture of another size
        return self.conv(x)


@difference
def submodule_tries_another_shape() -> Make:
    return _middle(_table)


@difference
def submodule_branches_by_size() -> Make:
    return _middle(lambda self, x: self.conv(x) if x.shape[2] > 16 else x)


def _alias(self: Any, x: Tensor) -> Tensor:
    y = self.conv1(x)
    flat = y.view(-1)
    flat += 1
    return self.fc(F.relu(self.conv2(F.relu(self.bn1(y)))).mean((2, 3)))


@difference
def alias_changed_in_place() -> Make:
    return _whole(_alias)


def _half(self: Any, x: Tensor) -> Tensor:
    y = self.conv1(x)
    y.chunk(2, 1)[0].mul_(-3)
    return self.fc(F.relu(self.conv2(F.relu(self.bn1(y)))).mean((2, 3)))


@difference
def part_changed_in_place() -> Make:
    return _whole(_half)


def _unnamed(self: Any, x: Tensor) -> Tensor:
    y = self.conv1(x)
    F.relu(y, True)  # the result is dropped, and y is changed
    return self.fc(F.relu(self.conv2(y)).mean((2, 3)))


@difference
def result_in_place_is_dropped() -> Make:
    return _whole(_unnamed)


def _between(self: Any, x: Tensor) -> Tensor:
    y = self.conv1(x)
    x.add_(1)
    return self.fc(F.relu(self.conv2(F.relu(self.bn1(y)) + self.conv1(x))).mean((2, 3)))


@difference
def input_changed_between_convolution_and_norm() -> Make:
    return _whole(_between)


class _Shifted(nn.ReLU):
    def forward(self, x: Tensor) -> Tensor:
        return x - 1


@difference
def relu_that_is_none() -> Make:
    return _replaced(_Shifted)


class _Blurred(nn.MaxPool2d):
    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(super().forward(x), 2, 1) - 0.5


@difference
def pooling_that_does_more() -> Make:
    return _replaced(lambda: _Blurred(2))


class _Centred(nn.Conv2d):
    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(x, weight - weight.mean((1, 2, 3), keepdim=True), bias)


@difference
def convolution_that_centres_its_weight() -> Make:
    return _changed(lambda n: setattr(n, "conv1", _Centred(3, 8, 3, padding=1)))


@difference
def forward_of_one_convolution() -> Make:
    def change(network: Any) -> None:
        conv = network.conv1
        conv.forward = lambda x: F.conv2d(x, conv.weight * 2, conv.bias, padding=1)

    return _changed(change)


@difference
def forward_of_one_norm() -> Make:
    def change(network: Any) -> None:
        norm = network.bn1
        norm.forward = lambda x: F.batch_norm(x, None, None, norm.weight, norm.bias, True)

    return _changed(change)


class _Doubled(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2


@difference
def norm_that_does_more() -> Make:
    return _changed(lambda n: setattr(n, "bn1", _Doubled(8)))


@difference
def view_of_a_map() -> Make:
    return _whole(lambda self, x: self.head(F.relu(self.conv2(F.relu(self.conv1(x)))).view(-1, 12 * 16 * 16)),
                  head=lambda: nn.Linear(12 * 16 * 16, 4))  # fmt: skip


@difference
def complex_numbers() -> Make:
    def forward(self: Any, x: Tensor) -> Tensor:
        y = self.features(x)
        y = torch.fft.irfft2(torch.fft.rfft2(y) * 2, s=(y.shape[2], y.shape[3]))
        return self.fc(F.relu(y).mean((2, 3)))

    return _whole(forward)


@difference
def integers() -> Make:
    def forward(self: Any, x: Tensor) -> Tensor:
        y = self.features(x)
        return self.fc((y * y.gather(1, y.argmax(1, keepdim=True))).mean((2, 3)))

    return _whole(forward)


@difference
def scalars() -> Make:
    def forward(self: Any, x: Tensor) -> Tensor:
        y = self.features(x)
        return self.fc((y / (y[:1].norm() + 1e-6) + y[:1].mean()).mean((2, 3)))

    return _whole(forward)


@difference
def five_axes() -> Make:
    return _whole(
        lambda self, x: self.fc(F.relu(self.deep(x[:, None])).flatten(2).mean(2)), deep=lambda: nn.Conv3d(1, 12, 3)
    )


def _scaled_by_the_first_size(self: Any, x: Tensor) -> Tensor:
    y = self.features(x)
    if getattr(self, "scale", None) is None:
        self.scale = math.sqrt(y.shape[2] * y.shape[3])
    return self.fc((y / self.scale).mean((2, 3)))


@difference
def what_the_first_picture_sets() -> Make:
    return _whole(_scaled_by_the_first_size)


class _Coordinates(nn.Module):
    """A map of places, kept for pictures of the same size."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.kept is None or self.kept.shape[-2:] != x.shape[-2:]:
            self.kept = torch.linspace(-1, 1, x.shape[-1]).expand(1, 1, x.shape[-2], -1).clone()
        return x + self.kept


@difference
def a_table_kept_for_a_size() -> Make:
    return _replaced(_Coordinates)


@difference
def pooling_over_the_whole_map() -> Make:
    def forward(self: Any, x: Tensor) -> Tensor:
        y = self.features(x)
        return self.fc(F.max_pool2d(y, (y.size(2), y.size(3))).flatten(1))

    return _whole(forward)


@difference
def masks() -> Make:
    def forward(self: Any, x: Tensor) -> Any:
        y = self.features(x)
        return self.fc((y * (y > 0.1)).mean((2, 3)))

    return _whole(forward)


@difference
def part_of_a_rectified_map_lowered() -> Make:
    def forward(self: Any, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y.narrow(1, 0, 4).sub_(1)
        return self.fc(self.conv2(F.max_pool2d(y, 1)).mean((2, 3)))

    return _whole(forward)


def _scripted() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch means to drop it, but people have such modules
        scripted: nn.Module = torch.jit.script(nn.Conv2d(8, 8, 1))
    return scripted


@difference
def scripted_submodule() -> Make:
    return _replaced(_scripted)


@difference
def norm_with_an_activation_beside_it() -> Make:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.conv2(self.bn1.act(self.bn1(self.conv1(x))))).mean((2, 3)))

    make = _whole(forward)

    def with_activation() -> nn.Module:
        network: Any = make()
        network.bn1.act = nn.Tanh()
        return network

    return with_activation


@refused
def network_asks_for_the_type() -> Make:
    return _whole(lambda self, x: self.fc(self.features(x).mean((2, 3))) * (2 if type(x) is Tensor else 1))


@refused
def network_tries_a_number() -> Make:
    return _whole(lambda self, x: self.fc(self.features(x).mean((2, 3)) * _channels(x)))


@refused
def network_branches_by_value() -> Make:
    return _whole(lambda self, x: self.fc(self.features(x if x.sum() > 0 else -x).mean((2, 3))))


@refused
def noise() -> Make:
    return _whole(lambda self, x: self.fc(self.features(x + torch.randn_like(x)).mean((2, 3))))


@refused
def noise_that_a_trace_keeps() -> Make:
    return _whole(lambda self, x: self.fc(self.features(x).mean((2, 3)) + torch.rand(12)))


@refused
def dropout_left_on() -> Make:
    return _middle(lambda self, x: F.dropout(x, 0.5, training=True))


def _counting(self: Any, x: Tensor) -> Tensor:
    self.calls = getattr(self, "calls", 0) + 1
    return self.fc(self.features(x).mean((2, 3)) * self.calls)


def _averaged(self: Any, x: Tensor) -> Tensor:
    y = self.features(x)
    self.seen.mul_(0.9).add_(y.mean((0, 2, 3)), alpha=0.1)
    return self.fc((y - self.seen.view(1, -1, 1, 1)).mean((2, 3)))


@refused
def average_of_what_was_seen() -> Make:
    make = _whole(_averaged)

    def with_buffer() -> nn.Module:
        network = make()
        network.register_buffer("seen", torch.zeros(12))
        return network

    return with_buffer


def _initialized(self: Any, x: Tensor) -> Tensor:
    if self.ready.item() == 0:
        self.ready.fill_(1)
        self.shift.copy_(-x.mean())
    return x + self.shift


@refused
def parameters_set_by_the_first_pictures() -> Make:
    make = _middle(_initialized)

    def with_state() -> nn.Module:
        network: Any = make()
        network.middle.register_buffer("ready", torch.zeros(()))
        network.middle.shift = nn.Parameter(torch.zeros(()))
        return network

    return with_state


@refused
def state_between_calls() -> Make:
    return _whole(_counting)


def _network(make: Make) -> nn.Module:
    torch.manual_seed(0)
    network = make().eval().requires_grad_(False)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in ((module.running_mean, -1, 1), (module.running_var, 0.5, 2), (module.bias, -1, 1)):
                tensor.uniform_(low, high)
    return network


def _model(network: nn.Module) -> Model:
    preprocess = from_mapping({"height": SIZE, "width": SIZE, "mean": [0.5] * 3, "std": [0.5] * 3}, "test")
    return Model("odd", "python:test:odd", "DEFAULT", "python", network, preprocess, None, "odd")


@pytest.mark.parametrize("name", DIFFERENCES)
@pytest.mark.filterwarnings("ignore::store.errors.Notice")
def test_what_is_measured_is_what_the_network_gives(name: str) -> None:
    network = _network(DIFFERENCES[name])
    want = network(PICTURES.clone()).numpy()
    model = _model(network)
    found = Measurer(model, "blocks").pixels(PIXELS).logits
    assert found is not None
    np.testing.assert_allclose(found, want, rtol=0, atol=1e-4 * np.abs(want).max())
    for layer, low in zip(model.graph.layers("all"), _lowest(model), strict=True):
        assert layer.signed or low >= 0, f"{layer.name} is believed to be never negative"


def _lowest(model: Model) -> list[float]:
    """The lowest value of each layer, from a plain run of the traced network."""
    from pipeline.graph import with_taps

    low: dict[str, float] = {}
    layers = model.graph.layers("all")
    with torch.no_grad():
        with_taps(model.graph.module, layers, lambda layer, x: low.__setitem__(layer.name, float(x.min())))(
            PICTURES.clone()
        )
    return [low[layer.name] for layer in layers]


class _Table(nn.Module):
    """A scaling whose buffer is replaced at the first run: by a function of the picture's size, or of the picture."""

    def __init__(self, of_picture: bool) -> None:
        super().__init__()
        self.of_picture = of_picture
        self.register_buffer("table", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        if self.table.numel() != x.shape[-1]:
            self.table = x.std((0, 1, 2)) if self.of_picture else torch.linspace(1, 2, x.shape[-1])
        return x * self.table


@pytest.mark.filterwarnings("ignore::store.errors.Notice")
def test_a_table_may_be_made_at_the_first_run_of_the_size_and_not_of_the_picture() -> None:
    network = _network(_replaced(lambda: _Table(False)))
    found = Measurer(_model(network), "blocks").pixels(PIXELS).logits
    np.testing.assert_allclose(found, network(PICTURES.clone()).numpy(), rtol=0, atol=1e-5)
    with pytest.raises(UsageError, match=r"changes part\.table when it runs"):
        build(_network(_replaced(lambda: _Table(True))), "python", (1, 3, SIZE, SIZE))


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_measured_is_refused_in_one_line(name: str) -> None:
    said = r"Odd(\.forward)? (cannot be traced|does something|gives other|changes )"
    with pytest.raises(UsageError, match=said) as error:
        build(_network(REFUSED[name]), "python", (1, 3, SIZE, SIZE))
    assert "\n" not in str(error.value)


def test_noise_is_named_where_it_begins() -> None:
    with pytest.raises(UsageError, match=r"beginning at randn_like: "):
        build(_network(REFUSED["noise"]), "python", (1, 3, SIZE, SIZE))
    with pytest.raises(UsageError, match=r"beginning at middle\.dropout: "):
        build(_network(REFUSED["dropout_left_on"]), "python", (1, 3, SIZE, SIZE))


def test_a_module_taken_whole_is_named_with_its_share() -> None:
    network = _network(DIFFERENCES["submodule_under_autocast"])
    inside = sum(p.numel() for p in network.get_submodule("middle").parameters())
    share = 100 * inside / sum(p.numel() for p in network.parameters())
    with pytest.warns(Notice, match=rf"no layers inside: middle \({share:.0f} % of the parameters\)$"):
        found = build(network, "python", (1, 3, SIZE, SIZE))
    assert [layer.name for layer in found.layers()] == ["relu", "relu_1", "fc"]


def test_the_axes_of_a_module_taken_whole_follow_from_a_picture_of_another_size() -> None:
    """No weight follows the module before its positions are averaged, so none shows which axis has the channels."""

    class Last(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            x = x * 2 if type(x) is Tensor else x
            return x.permute(0, 2, 3, 1)

    network = _network(_whole(lambda self, x: self.fc(self.last(self.features(x)).mean((1, 2))), last=Last))
    with pytest.warns(Notice, match="last"):
        (layer,) = build(network, "python", (1, 3, SIZE, SIZE)).layers("last")
    assert (layer.channels, layer.height, layer.width) == (12, 16, 16)


def test_axes_that_are_moved_are_not_taken_for_those_before() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        y = F.relu(self.conv1(x)).movedim(1, -1)
        y = y + F.gelu(self.last(y))
        return self.fc(y.mean((1, 2)))

    network = _network(_whole(forward, last=lambda: nn.Linear(8, 8), fc=lambda: nn.Linear(8, 4)))
    for layer in build(network, "python", (1, 3, SIZE, SIZE)).layers(["gelu", "add", "last"]):
        assert (layer.channels, layer.height, layer.width) == (8, SIZE, SIZE), layer.name


@pytest.mark.parametrize("which", ["max", "min"])
def test_mixing_is_seen_whichever_picture_decides(which: str) -> None:
    network = _network(_whole(lambda self, x: self.fc((self.features(x) * getattr(x, which)()).mean((2, 3)))))
    with pytest.warns(Notice, match="other pictures of its batch"):
        build(network, "python", (1, 3, SIZE, SIZE))


def test_pictures_that_mix_are_said_aloud() -> None:
    with pytest.warns(Notice, match=r"other pictures of its batch, beginning at bn1"):
        build(_network(DIFFERENCES["forward_of_one_norm"]), "python", (1, 3, SIZE, SIZE))


def test_opening_leaves_the_random_state_and_the_network_alone() -> None:
    network = _network(_whole(Small.forward))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    names = set(vars(network))
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build(network, "python", (1, 3, SIZE, SIZE))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert set(vars(network)) == names
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert nn.Module.__call__(network, PICTURES).shape == (2, 4)


def test_findings_are_kept_by_digest(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    checks = []
    real = build.__globals__["faithful_trace"]
    monkeypatch.setitem(build.__globals__, "faithful_trace", lambda *a: checks.append(a) or real(*a))
    names = []
    for seed in (0, 0, 1):
        names.append([layer.node for layer in open_model("torchvision:squeezenet1_1", f"random:{seed}").graph.layers()])
    assert len(checks) == 2, "the second network has the weights of the first"
    assert len(list(checked.folder().iterdir())) == 2
    for path in checked.folder().iterdir():
        path.write_text("{")
    open_model("torchvision:squeezenet1_1", "random:0").graph.layers()
    assert len(checks) == 3, "what cannot be read is checked again"
    assert names[0] == names[1] == names[2]
