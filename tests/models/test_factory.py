"""What a factory returns is brought to float32, eval and the CPU, or refused in one line; labels fit the outputs."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from click.testing import CliRunner
from torch import nn

from pipeline.models import factory, labels, open_model, weights
from store.errors import UsageError
from unitscope import cli

# torch deprecates TorchScript and its own quantization, which people still return.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
SHAPE = (1, 3, 16, 16)


class Net(nn.Module):
    def __init__(self, lazy: bool = False) -> None:
        super().__init__()
        self.conv = nn.LazyConv2d(8, 3) if lazy else nn.Conv2d(3, 8, 3)
        self.norm = nn.LazyBatchNorm2d() if lazy else nn.BatchNorm2d(8)
        self.fc = nn.LazyLinear(4) if lazy else nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.norm(self.conv(x)).relu().mean((2, 3)))


class Extra(Net):
    def __init__(self, value: object) -> None:
        super().__init__()
        self.value = value

    def get_extra_state(self) -> Any:
        if isinstance(self.value, Exception):
            raise self.value
        return self.value

    def set_extra_state(self, state: Any) -> None:
        self.value = state


class SparseBuffer(Net):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("adjacency", torch.eye(3).to_sparse())


class ReturnsNothing(Net):
    def train(self, mode: bool = True) -> Any:
        super().train(mode)


def _net() -> Net:
    torch.manual_seed(0)
    return Net()


def _compiled_inside() -> nn.Module:
    network = _net()
    network.conv = torch.compile(network.conv)  # type: ignore[assignment]
    return network


def _compiled_in_place() -> nn.Module:
    network = _net()
    network.compile()
    network.conv.compile()  # without a copy, a scan of this ends in a segmentation fault
    return network


def _in_inference_mode() -> nn.Module:
    with torch.inference_mode():
        return _net()


def _partly(change: Callable[[nn.Module], object]) -> nn.Module:
    network = _net()
    change(network.fc)
    return network


SAME: dict[str, Callable[[], nn.Module]] = {
    "training": lambda: _net().train().requires_grad_(),
    "train() returns nothing": lambda: (torch.manual_seed(0), ReturnsNothing())[1],
    "double": lambda: _net().double(),
    "compiled": lambda: torch.compile(_net()),  # type: ignore[return-value]
    "compiled inside": _compiled_inside,
    "compiled in place": _compiled_in_place,
    "in inference mode": _in_inference_mode,
}


@pytest.mark.parametrize("name", SAME)
def test_it_becomes_the_plain_network(name: str) -> None:
    made = factory.prepared(SAME[name](), SHAPE, "here")
    assert weights.digest(made) == weights.digest(_net())
    assert torch.equal(made(torch.ones(SHAPE)), _net().eval()(torch.ones(SHAPE)))
    _is_as_promised(made)


def _is_as_promised(network: nn.Module) -> None:
    assert not any(module.training for module in network.modules())
    for value in network.parameters():
        assert (value.dtype, value.device.type, value.requires_grad) == (torch.float32, "cpu", False)
        assert not value.is_inference()


@pytest.mark.parametrize("make", [lambda: _net().half(), lambda: _net().bfloat16(), lambda: _partly(nn.Module.half)])
def test_half_becomes_float(make: Callable[[], nn.Module]) -> None:
    made = factory.prepared(make(), SHAPE, "here")
    _is_as_promised(made)
    for value, exact in zip(made.parameters(), _net().parameters(), strict=True):
        assert torch.allclose(value, exact, atol=2e-3)


def test_a_wider_buffer_beside_float32_parameters_stays() -> None:
    network = _net()
    network.register_buffer("scale", torch.ones(3, dtype=torch.float64))
    before = weights.digest(network)
    assert weights.digest(factory.prepared(network, SHAPE, "here")) == before


def test_lazy_modules_are_initialized_from_the_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = _module(tmp_path, monkeypatch, "def make(): return Net(lazy=True), {'height': 16}")
    first, again, other = (open_model(f"python:{module}:make", f"random:{seed}") for seed in (0, 0, 1))
    assert first.digest == again.digest != other.digest
    _is_as_promised(first.network)
    torch.save(_net().state_dict(), tmp_path / "f.pth")
    assert open_model(f"python:{module}:make", str(tmp_path / "f.pth")).digest == weights.digest(_net())


def _quantized() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made: nn.Module = torch.ao.quantization.quantize_dynamic(_net().eval(), {nn.Linear}, dtype=torch.qint8)
        return made


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "scripted": (lambda: torch.jit.script(_net()), "ScriptModule"),
    "traced": (lambda: torch.jit.trace(_net().eval(), torch.ones(SHAPE)), "ScriptModule"),
    "frozen": (lambda: torch.jit.freeze(torch.jit.script(_net().eval())), "ScriptModule"),
    "exported": (lambda: torch.export.export(_net().eval(), (torch.ones(SHAPE),)).module(), r"eval\(\) raises"),
    "quantized": (_quantized, "fc is quantized .*return the float network"),
    "meta": (lambda: _net().to("meta"), "conv.weight is without values"),
    "partly meta": (lambda: _partly(lambda fc: fc.to("meta")), "fc.weight is without values"),
    "sparse": (SparseBuffer, "adjacency is a Tensor, torch.sparse_coo"),
    "an object": (lambda: Extra(object()), "_extra_state is of type object"),
    "raises": (lambda: Extra(RuntimeError("two\nlines")), r"state_dict\(\) raises RuntimeError: two lines"),
    "lazy, unused": (lambda: nn.ModuleDict({"a": nn.LazyLinear(3)}), "a.weight has no size"),
    "lazy, no such shape": (lambda: nn.Sequential(nn.Linear(5, 5), nn.LazyLinear(3)), r"call the network once"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_others_are_refused_in_one_line(name: str) -> None:
    make, said = REFUSED[name]
    with pytest.raises(UsageError, match=f"^here: .*{said}") as error:
        factory.prepared(make(), SHAPE, "here")
    assert "\n" not in str(error.value)


def test_extra_state_is_part_of_the_digest(tmp_path: Path) -> None:
    values = [{"a": 1}, {"a": 2}, {"a": "1"}, [1, (2.5, None)], np.ones(2), torch.ones(2), b"1", True, {"a": 1}]
    digests = [weights.digest(factory.prepared(_extra(value), SHAPE, "here")) for value in values]
    assert len(set(digests)) == len(values) - 1
    assert digests[0] == digests[-1]
    torch.save(_extra({"a": 2}).state_dict(), tmp_path / "f.pth")
    network = _extra({"a": 1})
    weights.load_file(network, str(tmp_path / "f.pth"))
    assert weights.digest(network) == digests[1]


def _extra(value: object) -> nn.Module:
    torch.manual_seed(0)
    return Extra(value)


GOOD: dict[str, Any] = {
    "tuple": ("a", "b"),
    "id2label": {1: "b", 0: "a"},
    "numeric texts": {"1": "b", "0": "a"},
    "numpy keys": {np.int64(0): "a", np.int32(1): "b"},
    "array": np.array(["a", "b"]),
    "bytes": np.array([b"a", b"b"]),
    "objects": np.array(["a", "b"], dtype=object),
    "series": pd.Series(["a", "b"]),
    "values": {"x": "a", "y": "b"}.values(),
}


@pytest.mark.parametrize("name", GOOD)
def test_labels(name: str) -> None:
    assert labels.labels_from(GOOD[name], "here") == ("a", "b")


def test_numbers_are_labels() -> None:
    for value in ([10, 20], np.array([10, 20]), torch.tensor([10, 20]), range(10, 30, 10), {0: 10, 1: 20}):
        assert labels.labels_from(value, "here") == ("10", "20")
    assert labels.labels_from([0.5, "x"], "here") == ("0.5", "x")
    assert labels.labels_from([], "here") is labels.labels_from(None, "here") is None


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("cat", "labels are of type str"),
        ({"a", "b"}, "labels are of type set"),
        (7, "labels are of type int"),
        ({1: "a", 2: "b"}, "no key 0"),
        ({0: "a", "0": "b"}, "no key 1"),
        ({"cat": 0, "dog": 1}, "the key 'cat'"),
        ({True: "a", False: "b"}, "the key True"),
        (["a", None], "label 1 is None"),
        (["a", True], "label 1 is True"),
        ([("n01", "a")], "label 0 is"),
        (np.array([["a", "b"]]), "label 0 is"),
        (["a", "\udc80"], "label 1 is"),
    ],
)
def test_other_labels_are_refused(value: object, said: str) -> None:
    with pytest.raises(UsageError, match=f"^here: .*{said}.*expected one text per output") as error:
        labels.labels_from(value, "here")
    assert "\n" not in str(error.value)


_numbers = itertools.count()


def _module(folder: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> str:
    """Write a module of its own name, which can be imported, and return the name."""
    name = f"factory_of_test_{next(_numbers)}"
    (folder / f"{name}.py").write_text(f"from models_test_net import Net\n{text}\n")
    (folder / "models_test_net.py").write_text(
        "import torch\nfrom torch import nn\n"
        + Path(__file__).read_text().split("SHAPE = (1, 3, 16, 16)")[1].split("class Extra")[0]
    )
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    return name


def test_the_number_of_labels_is_checked_before_anything_is_scanned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "def make(n): return Net(), {'height': 16, 'labels': list('abcdefgh')[:n]}\n"
    module = _module(tmp_path, monkeypatch, text + "def two(): return make(2)\ndef four(): return make(4)")
    model = open_model(f"python:{module}:four", "random:0")
    assert model.graph.logits
    assert model.labels == ("a", "b", "c", "d")
    config = f'[model]\nsource = "python:{module}:two"\nweights = "random:0"\n[dataset]\nsource = "package:demo"\n'
    (tmp_path / "c.toml").write_text(config)
    commands = [
        ["run", "c.toml", "--store", "s"],
        ["plan", "c.toml", "--store", "s"],
        ["layers", f"python:{module}:two"],
    ]
    for command in commands:
        with pytest.raises(UsageError, match="2 labels, but the network has 4 outputs"):
            CliRunner().invoke(cli, command, catch_exceptions=False)
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def make(): return Net(), {}, 1", "must return a module, or a module and a dict"),
        ("def make(): return [Net(), {}]", "must return a module, or a module and a dict"),
        ("def make(): return Net", "must return a module, or a module and a dict"),
        ("def make(): raise SystemExit(1)", "the factory raised SystemExit: 1"),
        ("raise SystemExit('usage')", "SystemExit: usage; expected python:MODULE:FACTORY"),
    ],
)
def test_what_is_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, said: str) -> None:
    module = _module(tmp_path, monkeypatch, text)
    with pytest.raises(UsageError, match=said):
        open_model(f"python:{module}:make", "random:0")


def test_names_of_the_hub_are_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, bool]] = []
    make = timm.create_model

    def create(name: str, pretrained: bool = False) -> nn.Module:
        asked.append((name, pretrained))
        network = make("resnet10t", num_classes=2)
        network.pretrained_cfg = {**network.pretrained_cfg, "label_names": ["cat", "dog"]}
        return network

    monkeypatch.setattr(timm, "create_model", create)
    model = open_model("timm:hf-hub:some-one/ResNet.pets")
    assert (model.name, model.labels, model.label_space) == ("some-one-resnet.pets", ("cat", "dog"), model.name)
    open_model("timm:hf-hub:some-one/ResNet.pets", "random:0")
    assert asked == [("hf-hub:some-one/ResNet.pets", True), ("hf-hub:some-one/ResNet.pets", False)]
    with pytest.raises(UsageError, match="has no tags"):
        open_model("timm:hf-hub:some-one/ResNet.pets", "a1_in1k")


def test_a_hub_that_cannot_be_reached_is_one_line() -> None:
    for chosen in (None, "random:0"):
        with pytest.raises(UsageError, match="could not be fetched") as error:
            open_model("timm:hf-hub:no-one/nothing", chosen)
        assert "\n" not in str(error.value)
