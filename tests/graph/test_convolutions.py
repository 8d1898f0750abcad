"""Compare arranged convolutions with torch's own: equal bits if both call oneDNN, else equal up to rounding."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.layers import Conv2dSame
from torch import Tensor, fx, nn

from pipeline.graph import build, fold_norms, fused
from pipeline.graph.cpu.convolution import Convolution


def _channels_last(*shape: int) -> Tensor:
    return torch.randn(*shape).contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("size", [(16, 16), (15, 15), (15, 16), (16, 13), (3, 2)])
@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_same_padding_by_zero_weights_changes_nothing_but_rounding(
    size: tuple[int, int], kernel: int, stride: int
) -> None:
    conv = Conv2dSame(32, 32, kernel, stride, groups=32).to(memory_format=torch.channels_last).requires_grad_(False)
    x = _channels_last(16, 32, *size).requires_grad_()
    y, ours = conv(x), Convolution(conv)(x)
    # Zeros added to a sum change no bit; which kernel adds it, and in which order, is the processor's matter.
    torch.testing.assert_close(ours, y, rtol=1e-6, atol=1e-6)
    (wanted,), (found,) = (torch.autograd.grad(z.square().sum(), x) for z in (y, ours))
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("conv", "limits"),
    [
        (nn.Conv2d(8, 24, 1), (0.0, 6.0)),
        (nn.Conv2d(8, 24, 3, 2, 1, bias=False), (0.0, None)),
        (nn.Conv2d(8, 8, 5, 1, 2, groups=8), (-1.0, 1.0)),
        (Conv2dSame(8, 8, 5, 2, groups=8), (0.0, 6.0)),
        (Conv2dSame(8, 16, 3, 2), (0.0, 6.0)),
    ],
)
def test_a_clip_in_the_convolution_changes_no_bit(conv: nn.Conv2d, limits: tuple[float, float | None]) -> None:
    conv = conv.to(memory_format=torch.channels_last).requires_grad_(False)
    x = _channels_last(16, 8, 20, 20) * 5
    with torch.inference_mode():
        assert torch.equal(Convolution(conv, limits)(x), conv(x).clamp(*limits))
        few = x[:1]
        torch.testing.assert_close(Convolution(conv, limits)(few), conv(few).clamp(*limits), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("limits", [(0.0, None), (0.0, 6.0), (-1.0, 2.0)])
@pytest.mark.parametrize("conv", [nn.Conv2d(8, 24, 3, 2, 1), Conv2dSame(8, 8, 5, 2, groups=8), Conv2dSame(8, 16, 3, 2)])
def test_gradients_are_those_of_the_two_operations(conv: nn.Conv2d, limits: tuple[float, float | None]) -> None:
    conv = conv.to(memory_format=torch.channels_last).requires_grad_(False)
    x = (_channels_last(8, 8, 20, 20) * 5).requires_grad_()
    y, ours = conv(x).clamp(*limits), Convolution(conv, limits)(x)
    weights = torch.randn(y.shape)
    (wanted,), (found,) = (torch.autograd.grad((z * weights).sum(), x) for z in (y, ours))
    assert wanted.abs().max() > 0
    torch.testing.assert_close(ours, y, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("limits", [None, (0.0, 6.0)])
@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(8, 24, 1),
        nn.Conv2d(8, 24, 1, 2, bias=False),
        nn.Conv2d(8, 16, 3, 2, 1, groups=2),
        nn.Conv2d(8, 16, 3, dilation=2),
        Conv2dSame(8, 8, 5, 2, groups=8),
        Conv2dSame(8, 16, 3, 2),
    ],
)
def test_weights_of_one_size_serve_all(conv: nn.Conv2d, limits: tuple[float, float | None] | None) -> None:
    """Weights are laid out for the first call in inference mode; other batch and map sizes must be correct too."""
    conv = conv.to(memory_format=torch.channels_last).requires_grad_(False)
    ours = Convolution(conv, limits)
    for shape in ((4, 8, 21, 20), (16, 8, 21, 20), (16, 8, 9, 14), (1, 8, 21, 20), (3, 8, 9, 14)):
        x = _channels_last(*shape) * 5
        with torch.inference_mode():
            wanted = conv(x) if limits is None else conv(x).clamp(*limits)
            torch.testing.assert_close(ours(x), wanted, rtol=1e-5, atol=1e-5)
    x = _channels_last(2, 8, 9, 14).requires_grad_()
    assert torch.autograd.grad(ours(x).sum(), x)[0].shape == x.shape, "and gradients flow afterwards"


@pytest.mark.parametrize("limits", [None, (0.0, None), (-1.0, 2.0)])
@pytest.mark.parametrize("images", [1, 3, 16])
@pytest.mark.parametrize("bias", [True, False])
def test_a_matrix_at_each_pixel(images: int, bias: bool, limits: tuple[float, float | None] | None) -> None:
    conv = nn.Conv2d(24, 40, 1, bias=bias).to(memory_format=torch.channels_last).requires_grad_(False)
    x = _channels_last(images, 24, 7, 9).requires_grad_()
    ours, wanted = Convolution(conv, limits)(x), conv(x)
    wanted = wanted if limits is None else wanted.clamp(*limits)
    weights = torch.randn(ours.shape)
    found, gradient = (torch.autograd.grad((y * weights).sum(), x)[0] for y in (ours, wanted))
    torch.testing.assert_close(ours, wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found, gradient, rtol=1e-5, atol=1e-5)
    with torch.inference_mode():
        pieces = [Convolution(conv, limits)(part) for part in x.split(2)]
        torch.testing.assert_close(torch.cat(pieces), wanted, rtol=1e-5, atol=1e-5)


class _Sums(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        y += x
        x = F.relu(y)
        x = torch.relu(x + self.conv(x))
        x = F.relu(torch.add(x, self.conv(x), alpha=2))  # not a plain sum
        x = F.relu(x + 1)
        kept = x + self.conv(x)
        x = F.relu(kept)
        twice = x + self.conv(x)
        return F.relu(twice) + F.relu6(twice + x)


@pytest.mark.parametrize("images", [1, 5])
def test_a_sum_takes_its_relu_along(images: int) -> None:
    network = _Sums().eval().requires_grad_(False)
    traced = fx.symbolic_trace(network)
    assert [node.name for node in traced.graph.nodes if node.op == "call_function"].count("add_4") == 1
    found = fused(traced, keep={"add_4"}, clips=True)
    sums = [n.name for n in found.graph.nodes if isinstance(n.target, str) and "relu" in n.target]
    assert sums == ["relu", "relu_1"]
    x = torch.randn(images, 3, 9, 7)
    with torch.inference_mode():
        before = x.clone()
        torch.testing.assert_close(found(x), traced(x), rtol=1e-5, atol=1e-5)
        assert torch.equal(x, before)
    x = torch.randn(images, 3, 9, 7, requires_grad=True)
    (ours,), (wanted,) = (torch.autograd.grad(y(x).square().sum(), x) for y in (found, traced))
    torch.testing.assert_close(ours, wanted, rtol=1e-4, atol=1e-4)
    network.conv.weight[0, 0] = torch.nan
    found = fused(traced, keep=(), clips=True)
    assert not any("relu" in str(n.target) for n in found.graph.nodes if n.op == "call_module"), "NaN stays NaN"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nothing_passes_at_a_limit(dtype: torch.dtype) -> None:
    """The zeros of a silent unit pass no gradient, as in torch's relu and hardtanh, on every path of computation."""
    conv = nn.Conv2d(8, 8, 1, bias=False).to(dtype=dtype, memory_format=torch.channels_last).requires_grad_(False)
    for limits in ((0.0, None), (0.0, 6.0)):
        x = torch.zeros(4, 8, 6, 6, dtype=dtype, requires_grad=True)
        (found,) = torch.autograd.grad(Convolution(conv, limits)(x).sum(), x)
        assert not found.any()


class _Dividing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.Conv2d(8, 8, 1) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self.first(x))
        x = F.relu6(self.second(x / x))  # 0 / 0 is NaN
        return F.relu6(self.third(x))


class _Between(nn.Module):
    """Two convolutions with a clip each, and between them an operation that makes values that are not finite."""

    def __init__(self, between: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.second(self.between(F.relu(self.first(x)))))


def _without_variance(variance: float, epsilon: float) -> nn.Module:
    norm = nn.BatchNorm2d(8, eps=epsilon)
    assert norm.running_var is not None
    norm.running_var.fill_(variance)
    return norm


def _takes_no_epsilon() -> bool:
    try:
        F.batch_norm(torch.zeros(1, 1), torch.zeros(1), torch.ones(1), eps=0.0)
    except ValueError:
        return False
    return True


@pytest.mark.parametrize(
    "between",
    [
        lambda x: x * float("inf"),
        lambda x: x + float("nan"),
        lambda x: F.max_pool2d(F.pad(x, (1, 1, 1, 1), value=-math.inf), 1),
        _without_variance(-1.0, 1e-5),
        pytest.param(
            _without_variance(0.0, 0.0),
            marks=pytest.mark.skipif(not _takes_no_epsilon(), reason="torch 2.10 refuses a batch norm with epsilon 0"),
        ),
        nn.Sequential(nn.Threshold(1e9, 0.0), nn.GroupNorm(1, 8, eps=0)),
    ],
    ids=["times infinity", "plus nan", "pad", "negative variance", "no variance", "no epsilon"],
)
def test_no_clip_is_fused_behind_what_is_not_finite(between: Callable[[Tensor], Tensor]) -> None:
    traced = fx.symbolic_trace(_Between(between).eval().requires_grad_(False))
    found = fused(traced, keep=(), clips=True)
    x = _channels_last(4, 3, 12, 12)
    with torch.inference_mode():
        wanted = traced(x).isnan()
        assert wanted.any()
        assert torch.equal(found(x).isnan(), wanted)


class _Doubled(nn.Conv2d):
    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(input, weight * 2, bias)


def _reassigned() -> nn.Conv2d:
    conv = nn.Conv2d(3, 8, 3, padding=1)
    conv.forward = lambda x: nn.Conv2d.forward(conv, x * 2)  # type: ignore[method-assign]
    return conv


def _with_a_number() -> nn.Conv2d:
    conv = nn.Conv2d(3, 8, 3)
    conv.padding = 1  # type: ignore[assignment]
    return conv


class _Leaf(fx.Tracer):
    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, nn.Conv2d) or super().is_leaf_module(module, name)


@pytest.mark.parametrize("conv", [_Doubled(3, 8, 3, padding=1), _reassigned(), _with_a_number()])
@pytest.mark.parametrize("norm", [False, True])
def test_a_convolution_of_its_own_stays_its_own(conv: nn.Conv2d, norm: bool) -> None:
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = conv, nn.BatchNorm2d(8) if norm else nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(self.norm(self.conv(x)))

    network = Network().eval().requires_grad_(False)
    traced = fx.GraphModule(network, _Leaf().trace(network))
    found = fused(fold_norms(traced, keep=()), keep=(), clips=True)
    x = _channels_last(4, 3, 12, 12)
    with torch.inference_mode():
        torch.testing.assert_close(found(x), network(x), rtol=1e-5, atol=1e-5)


def test_it_is_called_as_a_convolution_is() -> None:
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.by_name, self.single = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.by_name(input=x))
            return F.relu(self.single(x[0]))[None]

    traced = fx.symbolic_trace(Network().eval().requires_grad_(False))
    x = _channels_last(4, 3, 12, 12)
    with torch.inference_mode():
        torch.testing.assert_close(fused(traced, keep=(), clips=True)(x), traced(x), rtol=1e-5, atol=1e-5)


def test_a_nan_is_not_hidden() -> None:
    """oneDNN turns NaN into 0. So no clip is fused where a NaN may come in, and the scan can refuse such a unit."""
    traced = fx.symbolic_trace(_Dividing().eval().requires_grad_(False))
    x = torch.randn(16, 8, 4, 4)
    found = fused(traced, keep=(), clips=True)
    assert [n.name for n in found.graph.nodes if "arranged" in str(n.target)] == ["relu6", "second", "third"]
    with torch.inference_mode():
        wanted = traced(x).isnan()
        assert wanted.any()
        assert torch.equal(found(x).isnan(), wanted)
    traced.first.weight[0, 0] = float("nan")
    nodes = fused(traced, keep=(), clips=True).graph.nodes
    assert not any("arranged" in str(node.target) for node in nodes if "relu6" in node.name)


class _Awkward(nn.Module):
    """Convolutions of which all but the first have a reason to stay unchanged, or not to be fused with a clip."""

    def __init__(self) -> None:
        super().__init__()
        self.good, self.wanted, self.twice = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))
        self.hooked = nn.Conv2d(3, 3, 1)
        self.hooked.register_forward_hook(lambda module, inputs, output: output + 1)
        self.circular = nn.Conv2d(3, 3, 3, padding=1, padding_mode="circular")
        self.named = nn.Conv2d(3, 3, 3, padding="same")
        self.gelu = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.good(x))
        x = F.relu6(self.wanted(x))
        y = self.twice(x)
        x = F.relu(y) - y
        x = torch.relu(self.hooked(x))
        x = F.hardtanh(self.circular(x), -0.5, 0.5)
        x = F.relu(self.named(x))
        return F.gelu(self.gelu(x))


def test_only_what_it_may_is_arranged() -> None:
    torch.manual_seed(0)
    traced = fx.symbolic_trace(_Awkward().eval().requires_grad_(False))
    before = [node.name for node in traced.graph.nodes]
    found = fused(traced, keep={"wanted"}, clips=True)
    changed = [n.name for n in found.graph.nodes if n.op == "call_module" and "arranged" in str(n.target)]
    assert changed == ["relu", "wanted", "twice", "gelu"], "each keeps its name, the first that of its clip"
    assert [node.name for node in found.graph.nodes] == [name for name in before if name != "good"]
    x = torch.randn(4, 3, 9, 9)
    with torch.inference_mode():
        torch.testing.assert_close(found(x), traced(x), rtol=1e-5, atol=1e-6)
    assert [node.name for node in traced.graph.nodes] == before, "the original is as it was"


def test_without_clips_gradients_flow() -> None:
    network = timm.create_model("tf_efficientnet_lite0", pretrained=False).eval().requires_grad_(False)
    traced = build(network, "timm", (1, 3, 64, 64)).module
    found = fused(traced, keep=(), clips=False)
    changed = [str(node.target) for node in found.graph.nodes if "arranged" in str(node.target)]
    strided = [name for name in changed if "conv_dw" in name]
    assert len(strided) == 4, "the depthwise convolutions of stride 2"
    assert all("conv_pw" in name or "conv_head" in name for name in set(changed) - set(strided)), "and those of 1 x 1"
    x = torch.randn(2, 3, 65, 64, requires_grad=True)
    (wanted,) = torch.autograd.grad(traced(x).square().sum(), x)
    (ours,) = torch.autograd.grad(found(x).square().sum(), x)
    torch.testing.assert_close(ours, wanted, rtol=1e-3, atol=1e-5)
