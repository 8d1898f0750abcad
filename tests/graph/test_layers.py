"""Test tracing and the choice of layers: layer counts, names, globs, errors, edges and prefix tokens."""

import re
import warnings
from functools import lru_cache

import pytest
import timm
import torch
import torchvision
from support.tracing import traced
from torch import Tensor, nn

from pipeline.graph import Graph, build
from store.errors import Notice, UsageError

# Layers and units of "blocks", counted by hand and by a separate program.
COUNTS = {
    "timm:tf_efficientnet_lite0": (50, 22008),
    "timm:efficientnet_b0": (50, 22008),
    "efficientnet_b0": (50, 22008),
    "alexnet": (8, 10344),
    "vgg19": (19, 14696),
    "googlenet": (31, 8280),
    "inception_v3": (62, 19272),
    "resnet50": (50, 23720),
    "densenet121": (125, 43720),
    "timm:densenet121": (125, 43720),
    "mobilenet_v3_large": (48, 14480),
    "convnext_tiny": (41, 35560),
    "regnet_y_400mf": (50, 13776),
    "shufflenet_v2_x1_0": (35, 8312),
    "mnasnet1_0": (53, 19960),
    "vit_b_16": (38, 57064),
    "swin_t": (37, 27496),
    "maxvit_t": (104, 58152),
}


@lru_cache(1)
def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    if name.startswith("timm:"):
        return timm.create_model(name.removeprefix("timm:"), pretrained=False).eval().requires_grad_(False)
    extra = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    return torchvision.models.get_model(name, weights=None, **extra).eval().requires_grad_(False)


@lru_cache(1)
def graph(name: str) -> Graph:
    size = 299 if name == "inception_v3" else 224
    return traced(network(name), "timm" if name.startswith("timm:") else "torchvision", (1, 3, size, size))


@pytest.mark.parametrize("name", COUNTS)
def test_counts_names_and_bits(name: str) -> None:
    layers = graph(name).layers()
    assert (len(layers), sum(layer.channels for layer in layers)) == COUNTS[name]
    assert [layer.index for layer in layers] == list(range(len(layers)))
    assert layers[-1].node == graph(name).logits
    assert layers[-1].channels == 1000
    every = graph(name).layers("all")
    assert {layer.name for layer in layers} <= {layer.name for layer in every}
    assert len({layer.name.casefold() for layer in every}) == len(every)
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+(@prefix)?", layer.name) for layer in every)
    size = 224 if name in ("vit_b_16", "maxvit_t") else 96
    x = torch.randn(1, 3, size, size)
    with torch.no_grad():
        assert torch.equal(graph(name).module(x), network(name)(x))
    network.cache_clear()  # hundreds of MB that no other test needs
    graph.cache_clear()


def test_readable_names() -> None:
    names = {layer.name for layer in graph("resnet50").layers()}
    assert {"relu", "layer1.0.relu", "layer1.0.relu_1", "layer4.2.relu_2", "fc"} <= names
    assert "inception4a.cat" in {layer.name for layer in graph("googlenet").layers()}
    lite = {layer.name for layer in graph("timm:tf_efficientnet_lite0").layers()}
    assert {"blocks.3.1.add", "blocks.3.0.bn2", "classifier"} <= lite
    # torchvision's own tracer calls ln_1 "ln" and ln_2 "ln_1"
    assert "encoder.layers.encoder_layer_0.ln_2" in {layer.name for layer in graph("vit_b_16").layers("all")}


def test_the_network_is_left_as_it_was() -> None:
    before = set(vars(network("maxvit_t")))
    graph("maxvit_t")
    assert set(vars(network("maxvit_t"))) == before


def test_globs_keep_execution_order_and_number_anew() -> None:
    found = graph("resnet50").layers(["fc", "layer2.*.relu_2"])
    assert [layer.name for layer in found] == [*(f"layer2.{i}.relu_2" for i in range(4)), "fc"]
    assert [layer.index for layer in found] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("layer1.0.rellu_1", ["layer1.0.relu_1"]),
        ("nothing*", ["'nothing*'"]),
    ],
)
def test_what_matches_nothing_is_an_error_that_helps(pattern: str, said: list[str]) -> None:
    with pytest.raises(UsageError) as error:
        graph("resnet50").layers([pattern, "fc"])
    assert all(words in str(error.value) for words in said)
    assert "\n" not in str(error.value)


def test_a_list_of_modules_has_no_result_and_the_error_lists_its_layers() -> None:
    class Parts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.ModuleList(nn.Conv2d(3, 3, 1) for _ in range(2))

        def forward(self, x: Tensor) -> Tensor:
            return self.parts[1](self.parts[0](x))

    with pytest.raises(UsageError, match=r"parts is a module, not a layer; the layers in it: parts\.0, parts\.1$"):
        build(Parts().eval(), "python", (1, 3, 8, 8)).layers("parts")


class _Parallel(nn.Module):
    """Three branches that are summed before the block's own activation, as in RepVGG, and a sum around the block."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.narrow, self.norm = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.act(self.wide(x) + self.narrow(x) + self.norm(x))


class _Mixer(nn.Module):
    """Two branches whose sum, less a third, is scaled and added to the input, as in FastViT."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.narrow, self.norm = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.scale = nn.Parameter(torch.rand(4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = x.relu()
        return x + self.scale * (self.wide(x) + self.narrow(x) - self.norm(x))


class _Responses(nn.Module):
    """Global response normalization: a map plus itself, scaled by what it is on average."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last, self.act = nn.Conv2d(4, 8, 1), nn.Conv2d(8, 4, 1), nn.GELU()
        self.weight, self.bias = nn.Parameter(torch.rand(1, 8, 1, 1)), nn.Parameter(torch.rand(1, 8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.first(x))
        norm = y.norm(p=2, dim=(2, 3), keepdim=True)
        y = y + torch.addcmul(self.bias, self.weight, y * (norm / (norm.mean(dim=1, keepdim=True) + 1e-6)))
        return x + self.last(y)


@pytest.mark.parametrize(
    ("block", "chosen"),
    [
        (_Parallel, ["stem", "block.act", "block.add_2", "head"]),
        (_Responses, ["stem", "block.act", "block.add_2", "head"]),
        (_Mixer, ["block.relu", "block.add_1", "head"]),
    ],
)
def test_sums_inside_a_block_are_no_residual_sums(block: type[nn.Module], chosen: list[str]) -> None:
    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.block, self.head = nn.Conv2d(3, 4, 3), block(), nn.Linear(4, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.block(self.stem(x)).mean((2, 3)))

    found = build(Whole().eval().requires_grad_(False), "python", (1, 3, 16, 16))
    assert [layer.name for layer in found.layers()] == chosen


def test_edges_are_paths_without_a_layer_between() -> None:
    found = graph("googlenet")
    layers = found.layers()
    by_node = {layer.node: layer.name for layer in layers}
    nodes = {node.name: node for node in found.module.graph.nodes}
    expected = set()
    for layer in layers:  # a search from each layer, to check the single pass of edges()
        frontier, seen = list(nodes[layer.node].users), set()
        while frontier:
            node = frontier.pop()
            if node in seen:
                continue
            seen.add(node)
            if node.name in by_node:
                expected.add((layer.name, by_node[node.name]))
            else:
                frontier += list(node.users)
    assert set(found.edges(layers)) == expected
    assert ("inception4a.cat", "inception4b.cat") in expected
    assert len(found.edges(layers)) == len(expected)


def test_prefix_tokens_are_a_layer_of_their_own() -> None:
    every = {layer.name: layer for layer in graph("vit_b_16").layers("all")}
    add = every["encoder.layers.encoder_layer_3.add_1"]
    token = every["encoder.layers.encoder_layer_3.add_1@prefix"]
    assert (add.height, add.width, add.layout.prefix) == (14, 14, 1)
    assert (token.height, token.width, token.node, token.channels) == (1, 1, add.node, 768)
    assert token.rf_global
    x = torch.randn(2, 197, 768)
    grid = add.to_nchw(x)
    assert grid.untyped_storage().data_ptr() == x.untyped_storage().data_ptr()
    assert torch.equal(grid[:, :, 3, 5], x[:, 1 + 3 * 14 + 5])
    assert torch.equal(token.to_nchw(x)[:, :, 0, 0], x[:, 0])
    only = graph("vit_b_16").layers(["encoder.layers.*.add_1@prefix"])
    assert len(only) == 12
    assert not any(layer.layout.only_prefix for layer in graph("vit_b_16").layers())


def test_distilled_and_register_tokens_are_counted() -> None:
    network = timm.create_model("deit_tiny_distilled_patch16_224", pretrained=False).eval()
    layer = traced(network, "timm", (1, 3, 224, 224)).layers(["blocks.1.mlp.act"])[0]
    assert (layer.layout.prefix, layer.height, layer.width) == (2, 14, 14)


class _Branching(nn.Module):
    """Control flow that depends on values, which fx cannot trace."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.sum() > 0 else x.transpose(1, 3).transpose(1, 3)


class _Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3)
        self.odd = _Branching()
        self.relu = nn.ReLU(inplace=True)
        self.last = nn.Conv2d(5, 5, 1)

    def forward(self, x: Tensor, scale: float | None = None) -> Tensor:
        x = self.relu(self.odd(self.conv(x)))
        if scale is not None:
            x = x * scale
        return self.relu(self.last(x))


@pytest.mark.parametrize(("path", "layer"), [("inception4a", "inception4a.cat"), ("inception4a.branch1.bn", "")])
def test_a_modules_path_is_the_layer_that_is_its_result(path: str, layer: str) -> None:
    """As in Lucid, `mixed4a:0` is a channel of the module's output. A path that is a layer stands for itself."""
    if layer:
        with pytest.warns(Notice, match=rf"^{path} is a module; its result is the layer {layer}$"):
            (found,) = graph("googlenet").layers(path)
        assert found.name == layer
    else:
        (found,) = graph("googlenet").layers(path)
        assert found.name == path


@pytest.mark.filterwarnings("ignore:a picture's values depend")  # it branches by a sum over the batch
def test_untraceable_submodules_become_nodes_and_are_named() -> None:
    net = _Net().eval()
    with pytest.warns(UserWarning, match=r": odd \(0 % of"):
        found = build(net, "python", (1, 3, 12, 12))
    x = torch.randn(2, 3, 12, 12)
    assert torch.equal(found.module(x), net(x))
    assert [layer.name for layer in found.layers("all")] == ["conv", "odd", "relu", "last", "relu_1"]
    assert found.logits is None


def test_control_flow_in_the_network_itself_is_an_error() -> None:
    with pytest.raises(UsageError, match=r"_Branching\.forward cannot be traced"):
        build(_Branching(), "python", (1, 3, 8, 8))


def test_a_wrong_input_size_is_an_error() -> None:
    with pytest.raises(UsageError, match=r"does not run on a picture of shape \(3, 64, 64\)"):
        build(network("vit_b_16"), "torchvision", (1, 3, 64, 64))


def test_traceable_networks_do_not_warn() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build(network("timm:tf_efficientnet_lite0"), "timm", (1, 3, 224, 224))
