"""Each private name of torch and timm is taken away: the public way gives the same numbers, or the same structure."""

from __future__ import annotations

import sys
from collections import OrderedDict
from types import SimpleNamespace

import pytest
import timm.models
import torch
import torch.nn.functional as F
from timm.layers import BatchNormAct2d, Conv2dSame, Swish
from torch import Tensor, fx, nn

from pipeline.compat import aten, inductor, modules, onednn
from pipeline.compat import fx as compat_fx
from pipeline.compat import timm as compat_timm
from pipeline.featurevis.subnetwork import _no_sources_kept
from pipeline.graph import Graph, batchnorm_folding, build, fold_norms, fused
from pipeline.graph.analysis.shapes import propagate
from pipeline.graph.compile import compiled
from pipeline.models import weights
from store.errors import UsageError


class _Network(nn.Module):
    """One of each: a norm to fold, clips and a sum's ReLU to fuse, 1 x 1, depthwise and "same" padded convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8)
        self.wide, self.deep = nn.Conv2d(8, 16, 1), nn.Conv2d(16, 16, 3, 1, 1, groups=16)
        self.narrow, self.same = nn.Conv2d(16, 8, 1), Conv2dSame(8, 8, 3, 2, groups=8)
        self.last, self.swish = BatchNormAct2d(8), Swish()

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self.norm(self.stem(x)))
        y = F.relu6(self.deep(F.relu6(self.wide(x))))
        x = F.relu(self.narrow(y) + x)
        return self.swish(self.last(self.same(x)))


def _network() -> nn.Module:
    torch.manual_seed(0)
    return _Network().eval().requires_grad_(False)


def _traced() -> Graph:
    return build(_network(), "timm", (1, 3, 17, 16))


def _pictures(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1)) * 2


def _assert_close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def _arranged_outputs() -> list[Tensor]:
    """Outputs and gradients of the folded and fused network."""
    module = fused(fold_norms(_traced().module, keep=()), keep=(), clips=True)
    found = []
    for images in (1, 3, 16):
        x = _pictures(images, 3, 17, 16)
        with torch.inference_mode():
            found.append(module(x))
        x.requires_grad_()
        found += torch.autograd.grad(module(x).square().sum(), x)
    return found


@pytest.mark.parametrize(
    "taken",
    [("mkldnn",), ("aten",), ("mkldnn", "aten")],
    ids=["no mkldnn operators", "no aten operators", "neither"],
)
def test_operators_of_an_arranged_network(taken: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = _arranged_outputs()
    for name in taken:
        monkeypatch.setattr(torch.ops, name, SimpleNamespace())
    for ours, theirs in zip(_arranged_outputs(), wanted, strict=True):
        _assert_close(ours, theirs)


def test_operators_of_a_network_arranged_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of them is remembered, but weights in oneDNN's layout, which torch's own convolutions take too."""
    module = fused(_traced().module, keep=(), clips=True)
    x = _pictures(3, 3, 17, 16)
    with torch.inference_mode():
        wanted = module(x)
        monkeypatch.setattr(torch.ops, "mkldnn", SimpleNamespace())
        _assert_close(module(x), wanted)


@pytest.mark.parametrize("limits", [None, (0.0, None), (0.0, 6.0), (-1.0, 1.0)])
@pytest.mark.parametrize("settings", [((1, 1), (2, 2), (1, 1), 1), ((2, 0), (1, 3), (2, 1), 4)])
def test_convolutions(settings: onednn.Settings, limits: onednn.Limits | None, monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight, bias = _pictures(2, 8, 11, 10), _pictures(8, 8 // settings[3], 3, 3), _pictures(8)
    wanted = onednn.convolve(x, weight, bias, settings, limits)
    packed = onednn.convolve(x, onednn.packed_weight(weight, settings, x.shape), bias, settings, limits)
    assert torch.backends.mkldnn.is_available() == onednn.can_convolve()
    monkeypatch.setattr(torch.ops, "mkldnn", SimpleNamespace())
    assert not onednn.can_convolve()
    assert onednn.packed_weight(weight, settings, x.shape) is weight
    found = onednn.convolve(x, weight, bias, settings, limits)
    for y in (wanted, packed):
        _assert_close(y, found)


@pytest.mark.parametrize("size", [(11, 10), (12, 13)])
@pytest.mark.parametrize(
    "settings", [((1, 1), (2, 2), (1, 1), 1), ((2, 0), (1, 3), (2, 1), 4), ((0, 0), (3, 2), (1, 1), 8)]
)
def test_gradients_of_convolutions(
    size: tuple[int, int], settings: onednn.Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, weight = _pictures(2, 8, *size), _pictures(16, 8 // settings[3], 3, 3)
    gradient = torch.randn_like(onednn.convolve(x, weight, None, settings, None))
    wanted = aten.convolution_gradient(gradient, x, weight, settings)
    monkeypatch.setattr(torch.ops, "aten", SimpleNamespace())
    found = aten.convolution_gradient(gradient, x, weight, settings)
    assert found.shape == x.shape
    _assert_close(found, wanted)


@pytest.mark.parametrize("limits", [(0.0, None), (0.0, 6.0), (-1.0, float("inf"))])
def test_gradients_of_clips(limits: onednn.Limits, monkeypatch: pytest.MonkeyPatch) -> None:
    values = torch.tensor([-2.0, -1.0, -0.0, 0.0, 1e-30, 5.0, 6.0, 7.0, float("inf"), float("nan")])
    gradient = torch.arange(1.0, len(values) + 1)
    wanted = aten.clip_gradient(gradient, values, *limits)
    assert 0 < wanted.count_nonzero() < len(values)
    monkeypatch.setattr(torch.ops, "aten", SimpleNamespace())
    assert torch.equal(aten.clip_gradient(gradient, values, *limits), wanted)


@pytest.mark.parametrize("in_place", [True, False])
def test_rectified_sums(in_place: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = _pictures(2, 3, 5, 4), _pictures(2, 3, 5, 4).flip(0)
    first, second = a.clone(), a.clone()
    wanted = aten.rectified_sum(first, b, in_place)
    monkeypatch.setattr(torch.ops, "aten", SimpleNamespace())
    found = aten.rectified_sum(second, b, in_place)
    assert torch.equal(found, wanted)
    assert torch.equal(first, second)
    assert (found.data_ptr() == second.data_ptr()) == (wanted.data_ptr() == first.data_ptr()) == in_place


def test_shapes_without_a_dispatch_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    module = _traced().module
    wanted = propagate(module, (1, 3, 17, 16))
    monkeypatch.setitem(sys.modules, "torch.utils._python_dispatch", None)
    assert propagate(module, (1, 3, 17, 16)) == wanted


class _Constants(nn.Module):
    """Constants that a network makes, fills, counts and moves as it runs, and a buffer that it writes to."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(3))
        self.weight = nn.Parameter(torch.ones(3, 1, 1))
        self.large = nn.Parameter(torch.ones(300, 300))

    def forward(self, x: Tensor) -> Tensor:
        self.seen.add_(1)
        self.seen[1:].mul_(2)
        x = x.to(self.weight.device) * self.weight
        kept = torch.zeros(x.shape)
        kept[:, :, :, 1:3] = x[:, :, :, 1:3]
        mask = torch.arange(x.shape[3], device=x.device) < 4
        height, width = torch.tensor([2, 3]).mul_(2).tolist()
        self.seen.copy_(x.mean((0, 2, 3)))
        return (kept + mask + self.large.mean())[:, :, :height, :width].relu_()


def test_shapes_of_constants_that_a_network_makes() -> None:
    network, graph = _Constants().eval(), fx.Graph()
    graph.output(graph.call_function(torch.neg, (graph.call_module("network", (graph.placeholder("x"),)),)))
    module = fx.GraphModule(nn.ModuleDict({"network": network}), graph)
    found = propagate(module, (1, 3, 17, 16))
    assert network.seen.tolist() == [0, 0, 0]  # what a network keeps is as it was
    shapes_of = {node.name: shape for node, shape in found.of.items()}
    assert shapes_of == {"x": (2, 3, 17, 16)} | dict.fromkeys(("network", "neg", "output"), (2, 3, 4, 6))


class _Norms(nn.Module):
    """Batch norms of every kind: of one to three axes, without weights, without statistics, and in half precision."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.plain = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.BatchNorm2d(8, affine=False)
        self.own, self.flat, self.deep = nn.BatchNorm2d(8, track_running_stats=False), BatchNormAct2d(8), _Deep()
        self.last = nn.BatchNorm1d(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.flat(self.own(self.plain(self.norm(self.stem(x)))))
        x = self.norm(x.bfloat16()).float() + self.norm(x.transpose(2, 3).contiguous().transpose(2, 3))
        return self.last(self.last(self.deep(x).flatten(2)).mean(2))


class _Deep(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm3d(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.unsqueeze(2)).squeeze(2)


def test_shapes_of_batch_norms_are_those_of_computed_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    module = fx.symbolic_trace(_Norms().eval().requires_grad_(False))
    found = propagate(module, (1, 3, 9, 8))
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "torch.utils._python_dispatch", None)
        assert propagate(module, (1, 3, 9, 8)) == found
    norm, x = nn.BatchNorm2d(8).eval(), _pictures(2, 8, 5, 4)

    def fail(*_: object) -> None:
        raise AssertionError("a norm's steps are computed, which is slow")

    monkeypatch.setattr("torch._decomp.decompositions.native_batch_norm_helper", fail, raising=False)
    for like in (x, x.to(memory_format=torch.channels_last), x.bfloat16()):
        wanted = norm(like)
        with torch.no_grad(), compat_fx.shapes_only() as device:
            made = norm(torch.empty_like(like, device=device))
        assert (made.shape, made.dtype, made.stride()) == (wanted.shape, wanted.dtype, wanted.stride())
    with torch.no_grad(), compat_fx.shapes_only() as device, pytest.raises(RuntimeError, match="should contain 7 elem"):
        norm(torch.empty(2, 7, 5, 4, device=device))


@pytest.mark.parametrize("taken", ["_loader", "eval_cache"])
def test_without_kept_sources(taken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = compat_fx.kept_sources()
    before = set(kept)
    with _no_sources_kept():
        fx.symbolic_trace(nn.ReLU())
        assert set(kept) > before
    assert set(kept) == before
    monkeypatch.delattr(fx.graph_module if taken == "_loader" else fx.graph_module._loader, taken)
    assert compat_fx.kept_sources() == {}
    with _no_sources_kept():
        pass


def test_compiling_without_the_option(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def compile(network: nn.Module, **settings: object) -> nn.Module:
        asked.append(settings)
        if "options" in settings:
            raise RuntimeError("Unexpected optimization option realize_reads_threshold")
        return network

    monkeypatch.setattr(torch, "compile", compile)
    network = nn.ReLU()
    assert inductor.compiled_whole(network) is network
    assert asked == [
        {"fullgraph": True, "dynamic": False, "options": inductor.OPTIONS},
        {"fullgraph": True, "dynamic": False},
    ]


@pytest.mark.parametrize("taken", ["_dynamo", "exc", "TorchDynamoException"])
def test_compile_errors_by_their_public_base(taken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    known = inductor.compile_error()
    assert issubclass(known, RuntimeError), "so that the base catches what the class does"

    def fails(network: nn.Module, **settings: object) -> object:
        def run(x: Tensor) -> object:
            raise known("no such luck\nat all")

        return run

    monkeypatch.setattr(torch, "compile", fails)
    graph = _traced()
    run = compiled(graph.module, graph.layers("all")[-1:], lambda layer, x: None)
    if taken == "_dynamo":
        monkeypatch.setattr(torch, "_dynamo", None)
    elif taken == "exc":
        monkeypatch.setattr(torch._dynamo, "exc", None)
    else:
        monkeypatch.delattr(torch._dynamo.exc, "TorchDynamoException")
    assert inductor.compile_error() is RuntimeError
    with pytest.raises(UsageError, match=r"compile = true: torch.compile failed \(no such luck\)"):
        run(_pictures(1, 3, 17, 16))


def test_hooks_that_cannot_be_told(monkeypatch: pytest.MonkeyPatch) -> None:
    conv = nn.Conv2d(3, 3, 1)
    assert not modules.is_hooked(conv)
    conv.register_forward_pre_hook(lambda module, inputs: None)
    assert modules.is_hooked(conv)
    wanted = _arranged_outputs()
    monkeypatch.setattr(modules, "_HOOKS", ("_gone", "_gone_too"))
    assert modules.is_hooked(nn.Conv2d(3, 3, 1)), "it may be: nothing is folded or fused"
    modules.remove_hooks(conv)
    for ours, theirs in zip(_arranged_outputs(), wanted, strict=True):
        _assert_close(ours, theirs)


def test_hooks_are_removed() -> None:
    conv = nn.Conv2d(3, 3, 1)
    conv.register_forward_hook(lambda module, inputs, output: output * 0)
    modules.remove_hooks(conv)
    assert conv(_pictures(1, 3, 2, 2)).any()


@pytest.mark.parametrize("kind", sorted(modules._BASES))
def test_classes_without_their_base(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all classes that torch.nn exports, the same ones are of the kind; lazy ones become others at a first call."""
    exported = [cls for name, cls in vars(nn).items() if isinstance(cls, type) and not name.startswith("Lazy")]
    module, name, public = modules._BASES[kind]
    by_base = {cls for cls in exported if issubclass(cls, modules.torch_classes(kind))}
    assert by_base >= set(public)
    assert modules.torch_classes(kind) != public
    monkeypatch.delattr(module, name)
    assert modules.torch_classes(kind) == public
    by_public = {cls for cls in exported if issubclass(cls, public)}
    if kind == "conv":  # transposed ones share its base, and are looked for first
        transposed = modules.torch_classes("convtranspose")
        by_base = {cls for cls in by_base if not issubclass(cls, transposed)}
    assert by_public == by_base


class _OwnForward(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * 2


def test_methods_of_a_convolution(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "_conv_forward" in modules.CONVOLUTION_METHODS
    convolutions = [nn.Conv2d(3, 3, 1), Conv2dSame(3, 3, 3, 2), _OwnForward(3, 3, 1)]
    assert [batchnorm_folding.is_plain(conv) for conv in convolutions] == [True, True, False]
    monkeypatch.setattr(batchnorm_folding, "CONVOLUTION_METHODS", ("forward",))
    assert [batchnorm_folding.is_plain(conv) for conv in convolutions] == [True, True, False]


def test_state_without_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    state = _network().state_dict()
    assert modules.state_versions(state)
    copied = OrderedDict(state)
    modules.set_state_versions(copied, modules.state_versions(state))
    assert modules.state_versions(copied) == modules.state_versions(state)
    monkeypatch.setattr(modules, "_VERSIONS", "_gone")
    assert modules.state_versions(state) is None
    other = _Network().eval()
    assert weights.digest(other) != weights.digest(_network())
    weights.load(other, state, "here")
    assert weights.digest(other) == weights.digest(_network())


@pytest.mark.parametrize("taken", ["get_notrace_modules", "get_notrace_functions"])
def test_leaves_without_the_lists(taken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = _traced()
    assert {"BatchNormAct2d", "Conv2dSame"} <= {cls.__name__ for cls in compat_timm.leaves()[0]}
    monkeypatch.delattr(timm.models, taken)
    assert compat_timm.leaves()[1] == ()
    found = _traced()
    assert [layer.name for layer in found.layers("all")] == [layer.name for layer in wanted.layers("all")]
    assert [str(node.target) for node in found.module.graph.nodes] == [str(n.target) for n in wanted.module.graph.nodes]


def test_activations_wherever_they_are_defined(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not compat_timm.is_activation(nn.ReLU())
    wanted = [name for name in compat_timm._ACTIVATIONS if compat_timm.is_activation(getattr(timm.layers, name)())]
    monkeypatch.setattr(compat_timm, "_ACTIVATION_MODULES", "timm.gone")
    assert not compat_timm.is_activation(nn.ReLU())
    found = [name for name in compat_timm._ACTIVATIONS if compat_timm.is_activation(getattr(timm.layers, name)())]
    assert found == wanted == list(compat_timm._ACTIVATIONS)


def test_same_padding_is_known_by_its_class() -> None:
    assert compat_timm.is_same_padded(Conv2dSame(3, 3, 3))
    assert not compat_timm.is_same_padded(nn.Conv2d(3, 3, 3))
    assert not compat_timm.is_same_padded(type("Conv2dSame", (nn.Conv2d,), {})(3, 3, 3))
