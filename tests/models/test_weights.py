"""Weights files: torch decides what fits, wrappers and prefixes are opened, and errors are one line."""

from __future__ import annotations

import argparse
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from safetensors.torch import save_model
from torch import nn
from torch.nn.utils import parametrizations

from pipeline.models import open_model, weights
from store.errors import UsageError


class Net(nn.Module):
    def __init__(self, outputs: int = 4) -> None:
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.norm(self.conv(x)).relu().mean((2, 3)))


def _state(seed: int = 1) -> dict[str, Any]:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Net().state_dict()


def _prefixed(prefix: str, state: dict[str, Any]) -> dict[str, Any]:
    return {prefix + name: value for name, value in state.items()}


def _same(network: nn.Module, state: dict[str, Any]) -> bool:
    own = network.state_dict()
    return own.keys() == state.keys() and all(torch.equal(own[name], state[name]) for name in own)


ADAM = {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 0.1}]}
OPENED: dict[str, dict[str, Any]] = {
    "flat": _state(),
    "an epoch beside": {**_state(), "epoch": 3, "arch": "net"},
    "state_dict": {"state_dict": _state(), "optimizer": ADAM, "args": argparse.Namespace(lr=0.1)},
    "state_dict before all": {"state_dict": _state(), "state_dict_ema": _state(2)},
    "model": {"model": _state(), "epoch": 3},
    "ema": {"ema": _state()},
    "any name": {"net": _state(), "acc": 93.1},
    "nested": {"state": {"model": _state()}},
    "equal twice": {"model": _state(), "model_ema": _state()},
    "another network's beside": {"generator": {"deconv.weight": torch.ones(3)}, "discriminator": _state()},
    "DataParallel": _prefixed("module.", _state()),
    "compiled": _prefixed("_orig_mod.", _state()),
    "both": {"model": _prefixed("_orig_mod.module.", _state())},
    "Lightning": {"state_dict": _prefixed("model.", _state())},
    "averaged": {**_prefixed("module.", _state()), "n_averaged": torch.tensor(5)},
    "before num_batches_tracked": {n: v for n, v in _state().items() if "num_batches" not in n},
}


@pytest.mark.parametrize("name", OPENED)
def test_one_reading_that_fits_is_opened(tmp_path: Path, name: str) -> None:
    torch.save(OPENED[name], tmp_path / "f.ckpt")
    network = Net()
    weights.load_file(network, str(tmp_path / "f.ckpt"))
    wanted = _state()
    if name == "before num_batches_tracked":
        wanted["norm.num_batches_tracked"] = network.norm.num_batches_tracked
    assert _same(network, wanted)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "two that differ": ({"model": _state(), "ema": _state(2)}, "model and ema fit and differ: .*f.ckpt#model"),
    "two of others": ({"a": {"x": torch.ones(1)}, "b": {"y": torch.ones(1)}}, r"holds a \(1 tensor.*b.*f.ckpt#ENTRY"),
    "no tensors": ({"epoch": 1, "lr": 0.1}, "holds no state dict .*: epoch, lr"),
    "some with a prefix": (
        {**_prefixed("module.", _state()), "fc.bias": torch.ones(4)},
        r"missing \(.*unexpected \(module\.",
    ),
    "another head": (
        {**_state(), "fc.weight": torch.ones(10, 8), "fc.bias": torch.ones(10)},
        r"2 of another shape \(fc.weight: 10 x 8 in the file, 4 x 8 in the network; .*10 outputs in a factory .*labels",
    ),
    "a kernel": ({**_state(), "conv.weight": torch.ones(8, 3, 5, 5)}, "8 x 3 x 5 x 5 in the file, 8 x 3 x 3 x 3 in"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_others_are_refused_in_a_line_that_says_what_the_file_holds(tmp_path: Path, name: str) -> None:
    content, said = REFUSED[name]
    torch.save(content, tmp_path / "f.ckpt")
    with pytest.raises(UsageError, match=said) as error:
        weights.load_file(Net(), str(tmp_path / "f.ckpt"))
    assert "\n" not in str(error.value)


def test_an_entry_can_be_named(tmp_path: Path) -> None:
    file = str(tmp_path / "f.ckpt")
    torch.save({"model": _state(1), "state": {"ema": _state(2)}}, file)
    for entry, seed in (("model", 1), ("state/ema", 2)):
        network = Net()
        weights.load_file(network, f"{file}#{entry}")
        assert _same(network, _state(seed))
    with pytest.raises(UsageError, match=r"#no: the file holds no state dict of that name; it holds model .*state/ema"):
        weights.load_file(Net(), f"{file}#no")
    torch.save(_state(3), f"{file}#model")  # a file that exists goes first
    network = Net()
    weights.load_file(network, f"{file}#model")
    assert _same(network, _state(3))


def test_a_networks_own_prefix_stays(tmp_path: Path) -> None:
    network = nn.ModuleDict({"model": Net()})
    state = _prefixed("model.", _state())
    for content in (state, _prefixed("module.", state)):
        torch.save(content, tmp_path / "f.pth")
        weights.load_file(network, str(tmp_path / "f.pth"))
        assert _same(network, state)
    torch.save(_state(), tmp_path / "f.pth")
    with pytest.raises(UsageError, match="missing"):
        weights.load_file(network, str(tmp_path / "f.pth"))


def test_versions_lose_the_prefix_too(tmp_path: Path) -> None:
    """mnasnet refuses a state dict without the version of its root."""
    network = torchvision.models.mnasnet0_5()
    torch.save(nn.DataParallel(network).state_dict(), tmp_path / "f.pth")
    assert open_model("torchvision:mnasnet0_5", str(tmp_path / "f.pth")).digest == weights.digest(network)
    torch.save(OrderedDict(network.state_dict().items()), tmp_path / "f.pth")  # none at all
    assert open_model("torchvision:mnasnet0_5", str(tmp_path / "f.pth")).digest == weights.digest(network)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_the_hooks_of_modules_rename(tmp_path: Path) -> None:
    old, new = Net(), Net()
    nn.utils.weight_norm(old.fc)
    parametrizations.weight_norm(new.fc)
    torch.save(old.state_dict(), tmp_path / "f.pth")
    weights.load_file(new, str(tmp_path / "f.pth"))
    x = torch.rand(2, 3, 9, 9)
    assert torch.allclose(old.eval()(x), new.eval()(x), atol=1e-6)


def test_tied_tensors_are_saved_once(tmp_path: Path) -> None:
    def tied() -> nn.Sequential:
        network = nn.Sequential(nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 3))
        network[1].weight = network[0].weight
        return network

    saved, loaded = tied(), tied()
    save_model(saved, str(tmp_path / "f.safetensors"))
    weights.load_file(loaded, str(tmp_path / "f.safetensors"))
    assert _same(loaded, saved.state_dict())
    assert loaded[1].weight is loaded[0].weight
    with pytest.raises(UsageError, match=r"1 missing \(.\.weight\)"):  # the values are known only if both are one
        weights.load_file(nn.Sequential(nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 3)), str(tmp_path / "f.safetensors"))


@pytest.mark.parametrize("source", ["torchvision:resnet18", "timm:resnet18"])
@pytest.mark.parametrize("file", ["model.ckpt", "best.pth.tar", "IMAGENET1K_V1", "no suffix"])
def test_a_file_goes_before_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, file: str) -> None:
    monkeypatch.chdir(tmp_path)
    network = torchvision.models.resnet18()
    torch.save({"state_dict": network.state_dict()}, file)
    assert open_model(source, file).digest == weights.digest(network)


@pytest.mark.parametrize("chosen", ["missing.ckpt", "missing.pth.tar", "missing#model"])
def test_a_file_that_is_missing_is_no_name(chosen: str) -> None:
    for source in ("torchvision:resnet18", "timm:resnet18"):
        with pytest.raises(UsageError, match="is no file"):
            open_model(source, chosen)
    with pytest.raises(UsageError, match="is unknown"):
        open_model("torchvision:resnet18", "x" * 300)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_what_is_no_state_dict_is_named(tmp_path: Path) -> None:
    torch.save(Net(), tmp_path / "net.pth")
    torch.jit.script(Net().eval()).save(str(tmp_path / "script.pt"))
    torch.save([1, 2], tmp_path / "list.pth")
    for file, said in (("net.pth", r"it holds a [\w.]*Net"), ("script.pt", "TorchScript"), ("list.pth", "but a list")):
        with pytest.raises(UsageError, match=said):
            weights.load_file(Net(), str(tmp_path / file))
