"""Compare receptive fields with gradients.

With positive weights nothing cancels, so the field is the pixels whose gradient is not 0.
"""

import copy
import re
from collections.abc import Callable, Sequence

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from support.tracing import traced
from torch import Tensor, nn

from pipeline.graph import Layer, truncated


class _Odd(nn.Module):
    """Strides, dilation, uneven padding, branches and upsampling, all linear."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 5, 2, 1)
        self.dilated = nn.Conv2d(4, 4, 3, 1, 3, dilation=3)
        self.small = nn.Conv2d(4, 4, 1)
        self.pool = nn.AvgPool2d(3, 2, 1)
        self.asymmetric = nn.Conv2d(8, 4, 4, 1)
        self.up = nn.ConvTranspose2d(4, 4, 4, 2, 1)
        self.nearest = nn.Upsample(scale_factor=2)
        self.bilinear = nn.Upsample(scale_factor=2, mode="bilinear")
        self.head = nn.Linear(4, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.cat([self.dilated(x), self.small(x)], 1)
        x = self.pool(x)
        x = self.asymmetric(F.pad(x, (1, 2, 1, 2)))
        y = self.up(x)
        z = self.nearest(x) + y
        z = z + self.bilinear(x)
        return self.head(z.permute(0, 2, 3, 1))


def _averaging(network: nn.Module) -> nn.Module:
    """Return a float64 copy whose weights are positive averages, so that small inputs meet no clip and no zero."""
    network = copy.deepcopy(network).double().eval().requires_grad_(False)
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            module.weight.fill_(1 / module.weight[0].numel())
            if module.bias is not None:
                module.bias.zero_()
    for path, module in list(network.named_modules()):
        if isinstance(module, nn.MaxPool2d):  # its gradient shows only the pixel of the maximum, not all that it reads
            average = nn.AvgPool2d(module.kernel_size, module.stride, module.padding, module.ceil_mode)
            network.set_submodule(path, average)
    return network


def _support(module: nn.Module, shape: Sequence[int], at: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return the first and last row and the first and last column whose gradient is not 0."""
    x = torch.full(tuple(shape), 1e-3, dtype=torch.float64, requires_grad=True)
    y = module(x)
    (gradient,) = torch.autograd.grad(y[0, :, at[0], at[1]].sum(), x)
    seen = gradient[0].abs().sum(0)
    rows, columns = seen.sum(1).nonzero()[:, 0], seen.sum(0).nonzero()[:, 0]
    return int(rows[0]), int(rows[-1]), int(columns[0]), int(columns[-1])


def _claimed(layer: Layer, size: int, at: int) -> tuple[int, int]:
    assert layer.rf_size is not None
    assert layer.rf_stride is not None
    assert layer.rf_offset is not None
    start = layer.rf_offset + at * layer.rf_stride
    return max(start, 0), min(start + layer.rf_size - 1, size - 1)


def _compare(network: nn.Module, family: str, size: int, layers: Callable[[Layer], bool], exact: bool = True) -> int:
    graph = traced(network.eval(), family, (1, 3, size, size))
    averaging = traced(_averaging(network), family, (1, 3, size, size))
    compared = 0
    for layer in graph.layers("all"):
        if layer.rf_global or not layers(layer):
            continue
        cut = truncated(averaging.module, layer)
        for at in ((layer.height // 3, layer.width - 1), (layer.height // 2, layer.width // 2)):
            found = _support(cut, (1, 3, size, size), at)
            claimed = (*_claimed(layer, size, at[0]), *_claimed(layer, size, at[1]))
            if exact:
                assert found == claimed, layer
            inside = claimed[0] <= found[0] <= found[1] <= claimed[1]
            assert inside and claimed[2] <= found[2] <= found[3] <= claimed[3], layer  # noqa: PT018
            compared += 1
    return compared


def test_every_kind_of_window() -> None:
    # At some phases of its grid, an upsampled field covers a few pixels too many. Fields before it are exact.
    exact = {"stem", "dilated", "small", "cat", "pool", "asymmetric"}
    assert _compare(_Odd(), "python", 61, lambda layer: layer.name in exact) == 12
    rest = {"up", "nearest", "bilinear", "add", "add_1", "permute", "head"}
    assert _compare(_Odd(), "python", 61, lambda layer: layer.name in rest, exact=False) == 14


def test_alexnet() -> None:
    network = torchvision.models.alexnet()
    network.classifier = nn.Linear(9216, 10)  # what follows sees everything
    assert _compare(network, "torchvision", 224, lambda layer: layer.op in ("relu", "maxpool")) == 16


@pytest.mark.parametrize("name", ["resnet18", "googlenet", "shufflenet_v2_x0_5", "squeezenet1_1"])
def test_branches_and_shuffled_channels(name: str) -> None:
    extra = {"init_weights": False} if name == "googlenet" else {}
    network = torchvision.models.get_model(name, weights=None, **extra)
    ends = re.compile(r"layer[13]\.1\.relu_1|inception(3a|4a)\.cat|stage2\.[02]\.cat|features\.(4|9)\.cat")
    assert _compare(network, "torchvision", 129, lambda layer: bool(ends.fullmatch(layer.name))) >= 4


def test_same_padding() -> None:
    network = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    some = {"blocks.1.1.add", "blocks.2.1.add", "blocks.3.1.add"}
    assert _compare(network, "timm", 128, lambda layer: layer.name in some) == 6


def test_flat_kernels_are_covered() -> None:
    network = torchvision.models.inception_v3(init_weights=False)
    some = {"Mixed_6b.branch7x7_2.relu", "Mixed_6b.cat"}
    assert _compare(network, "torchvision", 171, lambda layer: layer.name in some, exact=False) == 4


def test_gates_are_ignored_and_told() -> None:
    layers = traced(torchvision.models.mobilenet_v3_large().eval(), "torchvision", (1, 3, 224, 224)).layers()
    first = next(i for i, layer in enumerate(layers) if layer.rf_gated)
    assert layers[first].name == "features.4.block.3.0" or layers[first].name.startswith("features.4")
    assert all(layer.rf_gated for layer in layers[first:])
    assert [layer.name for layer in layers if layer.rf_global] == ["classifier.1", "classifier.3"]


def test_attention_sees_everything() -> None:
    layers = traced(torchvision.models.vit_b_16().eval(), "torchvision", (1, 3, 224, 224)).layers()
    assert (layers[0].name, layers[0].rf_size, layers[0].rf_stride, layers[0].rf_offset) == ("conv_proj", 16, 16, 0)
    assert all(layer.rf_global and layer.rf_size is None for layer in layers[1:])
