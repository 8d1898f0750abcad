"""Every objective agrees with numpy, lucent or finite differences in value and gradient, and ascent raises it."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.featurevis import Objective, Renderer, Settings, objectives, render
from pipeline.featurevis.objectives import INPUT, Activations
from pipeline.featurevis.objectives.penalties import blurred
from pipeline.models import Model
from store.errors import UsageError

LAYER = "blocks.1.1.add"
LABELS = ("tench, Tinca tinca", "crane", "crane", "ostrich")


def _drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _activations(channels: int = 5) -> Activations:
    """Return fixed activations, in double precision for the sake of difference quotients."""
    layers = {
        "l": _drawn(4, channels, 6, 7).double().requires_grad_(),
        "m": _drawn(4, 3, 5, 5, seed=1).double().requires_grad_(),
        INPUT: torch.rand(4, 4, 9, 8, generator=torch.Generator().manual_seed(2)).double().requires_grad_(),
    }
    return Activations(layers, {"l": _drawn(4, channels, 6, 7, seed=3).double()}, LABELS)


VECTOR = np.random.default_rng(0).normal(size=5).astype(np.float32)
VECTORS = np.random.default_rng(1).normal(size=(4, 5)).astype(np.float32)
BLOCK = np.random.default_rng(2).normal(size=(5, 4, 9)).astype(np.float32)
ORIGINAL = np.random.default_rng(3).random((9, 8, 4)).astype(np.float32)
Arrays = dict[str, NDArray[np.float64]]
Formula = Callable[[Arrays], NDArray[np.float64]]


def _powered(x: NDArray[np.float64], v: NDArray[np.floating], power: float) -> NDArray[np.float64]:
    """Multiply the dot product along axis 1 by a power of the cosine, which counts as at least 0.1."""
    dot = (x * v).sum(1)
    cosine = dot / ((1e-4 + np.sqrt((x**2).sum(1))) * (1e-4 + np.sqrt((v**2).sum(1))))
    return np.asarray(dot * np.maximum(cosine, 0.1) ** power)


def _box(x: NDArray[np.float64], width: int) -> NDArray[np.float64]:
    """Take the mean of the neighbours that exist, one position at a time. The outer ring of the box has half weight."""
    reach, result = width // 2, np.zeros_like(x)
    for y, x_ in np.ndindex(x.shape[2:]):
        total, weights = np.zeros(x.shape[:2]), 0.0
        for i, j in np.ndindex(width, width):
            row, column = y + i - reach, x_ + j - reach
            if 0 <= row < x.shape[2] and 0 <= column < x.shape[3]:
                weight = 0.5 if i in (0, width - 1) or j in (0, width - 1) else 1.0
                total += weight * x[:, :, row, column]
                weights += weight
        result[:, :, y, x_] = total / weights
    return result


def _half_squared_to_blurred(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(0.5 * ((x - _box(x, 3)) ** 2).sum((1, 2, 3)))


def _boundary(x: NDArray[np.float64]) -> NDArray[np.float64]:
    border = np.ones(x.shape[2:])
    border[2:-2, 2:-2] = 0
    return np.asarray(-((((_box(x, 5) - x) ** 2) + 0.8 * (x - 0.3) ** 2) * border).sum((1, 2, 3)))


def _alike(x: NDArray[np.float64], group: int) -> NDArray[np.float64]:
    total = np.zeros(len(x))
    for i, j in np.ndindex(len(x), len(x)):
        if i != j and i // group == j // group:
            a, b = (np.einsum("cp,dp->cd", m, m) for m in (x[i].reshape(len(x[i]), -1), x[j].reshape(len(x[j]), -1)))
            total[i] += (a * b).sum() / np.sqrt((a**2).sum() * (b**2).sum())
    return total


def _aligned(x: NDArray[np.float64]) -> NDArray[np.float64]:
    total = np.zeros(len(x))
    for i, j in np.ndindex(len(x), len(x)):
        if i != j:
            total[i] -= ((x[i] - x[j]) ** 2).mean() / 2.0 ** abs(i - j) / 2
    return total


def _compared(x: NDArray[np.float64], power: float) -> NDArray[np.float64]:
    its = _activations().references["l"].numpy()
    dot = (x * its).sum((1, 2, 3))
    cosine = dot / (np.sqrt((x**2).sum((1, 2, 3)) * (its**2).sum((1, 2, 3))) + 1e-6)
    return np.asarray(dot * np.maximum(cosine, 0.1) ** power)


SIGNS = np.array([1, -1, 2, 0])
ROWS, CHANNELS, HALF = np.arange(4), [3, 0, 4, 3], np.array([0, 1 / 3, 2 / 3, 1])
# name of the case: the objective, its formula in numpy
CASES: dict[str, tuple[Objective, Formula]] = {
    "channel": (objectives.channel("l", 2), lambda a: a["l"][:, 2].mean((1, 2))),
    "channels": (objectives.channel("l", CHANNELS), lambda a: a["l"][ROWS, CHANNELS].mean((1, 2))),
    "channel of one": (objectives.channel("l", 2, batch=1), lambda a: a["l"][:, 2].mean((1, 2)) * (ROWS == 1)),
    "neuron": (objectives.neuron("l", CHANNELS), lambda a: a["l"][ROWS, CHANNELS, 3, 3]),
    "neuron at": (objectives.neuron("l", 1, y=0, x=6), lambda a: a["l"][:, 1, 0, 6]),
    "class_logit": (objectives.class_logit("l", "ostrich"), lambda a: a["l"][:, 3].mean((1, 2))),
    "class_logit index": (objectives.class_logit("l", 2), lambda a: a["l"][:, 2].mean((1, 2))),
    "deepdream": (objectives.deepdream("l"), lambda a: (a["l"] ** 2).mean((1, 2, 3))),
    "channel_interpolate": (
        objectives.channel_interpolate("l", 1, "m", 2),
        lambda a: (1 - HALF) * a["l"][:, 1].mean((1, 2)) + HALF * a["m"][:, 2].mean((1, 2)),
    ),
    "direction": (
        objectives.direction("l", VECTOR), lambda a: np.einsum("nchw,c->nhw", a["l"], VECTOR).mean((1, 2)),
    ),
    "directions": (
        objectives.direction("l", VECTORS, cossim_pow=2),
        lambda a: _powered(a["l"], VECTORS[:, :, None, None], 2).mean((1, 2)),
    ),
    "direction_neuron": (
        objectives.direction_neuron("l", VECTOR, y=1, x=2, cossim_pow=1),
        lambda a: _powered(a["l"][:, :, 1, 2], VECTOR[None], 1),
    ),
    "direction_cossim": (
        objectives.direction_cossim("l", VECTOR),
        lambda a: (
            np.einsum("nchw,c->nhw", a["l"], VECTOR) / np.sqrt((a["l"] ** 2).sum(1)) / np.sqrt((VECTOR**2).sum())
        ).mean((1, 2)),
    ),
    "tensor_direction": (  # the tensor is lower and wider than the map, so only the overlap counts
        objectives.tensor_direction("l", BLOCK),
        lambda a: (a["l"][:, :, 1:5] * BLOCK[None, :, :, 1:8]).sum(1).mean((1, 2)),
    ),
    "dot_compare": (objectives.dot_compare("l", cossim_pow=1.5), lambda a: _compared(a["l"], 1.5)),
    "total_variation": (
        objectives.total_variation(),
        lambda a: np.abs(np.diff(a["input"], axis=2)).sum((1, 2, 3)) + np.abs(np.diff(a["input"])).sum((1, 2, 3)),
    ),
    "L1": (objectives.L1("l", constant=0.25), lambda a: np.abs(a["l"] - 0.25).sum((1, 2, 3))),
    "L2": (objectives.L2(constant=0.5), lambda a: np.sqrt(1e-6 + ((a["input"] - 0.5) ** 2).sum((1, 2, 3)))),
    "blur_input_each_step": (objectives.blur_input_each_step(), lambda a: _half_squared_to_blurred(a["input"])),
    "blur_alpha_each_step": (
        objectives.blur_alpha_each_step(), lambda a: _half_squared_to_blurred(a["input"][:, 3:]),
    ),
    "penalize_boundary_complexity": (
        objectives.penalize_boundary_complexity(2, color=0.3), lambda a: _boundary(a["input"]),
    ),
    "input_diff": (
        objectives.input_diff(ORIGINAL),
        lambda a: np.sqrt(((a["input"] - ORIGINAL.transpose(2, 0, 1)) ** 2).mean((1, 2, 3))),
    ),
    "alignment": (objectives.alignment("l"), lambda a: _aligned(a["l"])),
    "diversity": (objectives.diversity("l"), lambda a: _alike(a["l"], 4)),
    "diversity in pairs": (objectives.diversity("l", group=2), lambda a: _alike(a["l"], 2)),
    "sum": (
        2 * objectives.channel("l", 1) - objectives.neuron("m", 2) * 0.5 + 3 - 1.0,
        lambda a: 2 * a["l"][:, 1].mean((1, 2)) - 0.5 * a["m"][:, 2, 2, 2] + 2,
    ),
    "product": (
        objectives.channel("l", 1) * objectives.channel("m", 2) / 2,
        lambda a: a["l"][:, 1].mean((1, 2)) * a["m"][:, 2].mean((1, 2)) / 2,
    ),
    "factors": (1 - objectives.channel("l", 1) * [1, -1, 2, 0], lambda a: 1 - a["l"][:, 1].mean((1, 2)) * SIGNS),
}  # fmt: skip
DETACHED = ("blur_input_each_step", "blur_alpha_each_step")  # difference quotients do not see what is held fixed


def _arrays(T: Activations) -> Arrays:
    return {name: x.detach().numpy() for name, x in T.layers.items()}


def test_every_objective_has_a_case() -> None:
    made = {name for name in objectives.__all__ if name[0].islower() or name in ("L1", "L2")}
    assert made - {"parse", "as_objective"} <= set(CASES)


@pytest.mark.parametrize("name", CASES)
def test_value_is_the_formulas(name: str) -> None:
    objective, formula = CASES[name]
    activations = _activations()
    found = objective(activations)
    assert found.shape == (4,)
    np.testing.assert_allclose(found.detach().numpy(), formula(_arrays(activations)), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", [name for name in CASES if name not in DETACHED])
def test_gradient_is_the_formulas_difference_quotient(name: str) -> None:
    """The difference is taken along a random direction in everything that the objective reads, for each picture."""
    objective, formula = CASES[name]
    activations = _activations()
    arrays = _arrays(activations)
    moves = {layer: np.random.default_rng(7).normal(size=arrays[layer].shape) for layer in objective.layers}
    ahead, behind = (
        formula({k: x + s * 1e-6 * moves[k] if k in moves else x for k, x in arrays.items()}) for s in (1, -1)
    )
    values = objective(activations)
    for picture in range(4):
        if not values[picture].requires_grad:
            continue
        read = [activations.layers[layer] for layer in objective.layers]
        found = torch.autograd.grad(values[picture], read, retain_graph=True, allow_unused=True)
        along = sum(
            float((g.numpy() * moves[k]).sum()) for k, g in zip(objective.layers, found, strict=True) if g is not None
        )
        assert along == pytest.approx((ahead - behind)[picture] / 2e-6, rel=2e-4, abs=1e-6)


def test_a_step_down_the_blur_penalty_blurs() -> None:
    x = torch.rand(2, 4, 9, 8, requires_grad=True)
    for objective, part in (
        (objectives.blur_input_each_step(), slice(None)), (objectives.blur_alpha_each_step(), slice(3, 4)),
    ):  # fmt: skip
        (gradient,) = torch.autograd.grad(objective(Activations({INPUT: x})).sum(), x)
        step = (x - 0.25 * gradient).detach()
        expected = x.detach().clone()
        expected[:, part] = 0.75 * expected[:, part] + 0.25 * blurred(x.detach())[:, part]
        torch.testing.assert_close(step, expected)


@pytest.mark.parametrize("name", [name for name, (objective, _) in CASES.items() if not objective.mixes])
def test_a_picture_reads_its_own_activations_only(name: str) -> None:
    objective, activations = CASES[name][0], _activations()
    value = objective(activations)[1]
    read = [activations.layers[layer] for layer in objective.layers]
    found = torch.autograd.grad(value, read, allow_unused=True)
    assert any(g is not None and g[1].abs().sum() > 0 for g in found)
    for gradient in found:
        assert gradient is None or not gradient[[0, 2, 3]].any()


@pytest.fixture(scope="module")
def lucent() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module("lucent.optvis.objectives")


UNIT = torch.from_numpy(VECTOR)
# name: ours, lucent's (made from its module), how the numbers of a batch become lucent's one
SAME: dict[str, tuple[Objective, Callable[[Any], Any], Callable[[Tensor], Tensor]]] = {
    "channel": (objectives.channel("l", 2), lambda o: o.channel("l", 2), torch.mean),
    "channel of one": (objectives.channel("l", 2, batch=1), lambda o: o.channel("l", 2, batch=1), torch.sum),
    "as string": (objectives.as_objective("l:3"), lambda o: o.as_objective("l:3"), torch.mean),
    "neuron": (objectives.neuron("m", 2), lambda o: o.neuron("m", 2), torch.mean),
    "neuron at": (objectives.neuron("l", 2, y=1, x=4), lambda o: o.neuron("l", 2, x=4, y=1), torch.mean),
    "direction": (
        objectives.direction("l", UNIT / 5), lambda o: o.channel_weight("l", UNIT), torch.mean,
    ),  # lucent's takes the mean over channels too
    "direction_cossim": (objectives.direction_cossim("l", UNIT), lambda o: o.direction("l", UNIT), torch.mean),
    "blur_input_each_step": (objectives.blur_input_each_step(), lambda o: o.blur_input_each_step(), torch.sum),
    "channel_interpolate": (
        objectives.channel_interpolate("l", 1, "m", 2), lambda o: o.channel_interpolate("l", 1, "m", 2), torch.sum,
    ),
    "alignment": (objectives.alignment("l"), lambda o: o.alignment("l"), torch.sum),
    "diversity": (objectives.diversity("l"), lambda o: o.diversity("l"), torch.mean),
    "arithmetic": (
        2 * objectives.channel("l", 1) - 0.5 * objectives.channel("m", 2) + 3,
        lambda o: 2 * o.channel("l", 1) - 0.5 * o.channel("m", 2) - 3, torch.mean,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SAME)
def test_value_and_gradient_are_lucents(name: str, lucent: Any) -> None:
    """lucent's objectives are losses, so ours are their negatives.

    lucent's diversity is a loss that makes pictures alike, so its users subtract it, as they do with Lucid's and ours.
    """
    ours, theirs, total = SAME[name]
    found: list[Tensor] = []
    gradients: list[tuple[Tensor, ...]] = []
    for measure in (lambda T: total(ours(T)), lambda T: -theirs(lucent)(T)):
        activations = Activations({k: v.detach().float().requires_grad_() for k, v in _activations().layers.items()})
        value = measure(activations)
        gradients.append(torch.autograd.grad(value, [activations.layers[layer] for layer in ours.layers]))
        found.append(value.detach())
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-6)
    for mine, its in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-4, atol=1e-6)


def test_texts_are_in_lucids_notation_and_one_a_picture() -> None:
    both = objectives.channel("l", [1, 2]) - 0.5 * objectives.L1()
    assert both.text == tuple(f"(channel(l:{c}) + -1 * 0.5 * L1(input, 0))" for c in (1, 2))
    assert both.pictures == 2
    assert both.layers == ("l", "input")
    assert not both.mixes
    assert (both + objectives.alignment("l")).mixes
    assert str(objectives.direction("l", VECTOR)) == "direction(l, ...)"


def test_names_of_units() -> None:
    assert objectives.parse("layer1.0.relu_1:12") == ("layer1.0.relu_1", 12)
    assert objectives.parse("layer1 : 3") == ("layer1", 3)
    for wrong in ("layer1", "layer1:", ":3", "layer1:-1", "layer1:x"):
        with pytest.raises(UsageError, match="LAYER:CHANNEL"):
            objectives.parse(wrong)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: objectives.channel("l", 5), "l:5: layer [^ ]+ has channels 0 to 4"),
        (lambda: objectives.channel("l", [1, 2]), "2 channels of l for a batch of 4"),
        (lambda: objectives.channel("l", 1, batch=4), "batch = 4: this batch has pictures 0 to 3"),
        (lambda: objectives.channel("l", [1, 2]) + objectives.channel("l", [1, 2, 3]), "2 and 3 do not go together"),
        (lambda: objectives.channel("l", [1, 2]) * [1, 2, 3], "do not go together"),
        (lambda: objectives.neuron("l", 1, y=6), "y = 6, x = 3: the map at this canvas is 6 x 7"),
        (lambda: objectives.class_logit("l", "crane"), "ambiguous: classes 1, 2"),
        (lambda: objectives.class_logit("l", "ostrch"), "unknown: did you mean ostrich"),
        (lambda: objectives.direction("l", VECTOR[:4]), "the layer has 5 channels, the direction 4"),
        (lambda: objectives.direction("l", VECTORS[:3]), "3 directions for a batch of 4"),
        (lambda: objectives.direction("l", BLOCK), r"found \[5, 4, 9\]"),
        (lambda: objectives.tensor_direction("l", VECTOR), r"expected a tensor \[C, H, W\]"),
        (lambda: objectives.dot_compare("m"), "give references="),
        (lambda: objectives.diversity("l", 3), "not made of groups of 3"),
        (lambda: objectives.input_diff(ORIGINAL[:5]), "the original"),
    ],
)
def test_mistakes_are_named(make: Callable[[], Objective], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        make()(_activations())


def test_alpha_is_asked_for() -> None:
    with pytest.raises(UsageError, match="set alpha=True"):
        objectives.blur_alpha_each_step()(Activations({INPUT: torch.rand(1, 3, 8, 8)}))


GENTLE = {"learning_rate": 0.002}  # a random start is already close to what most penalties ask for
# Objectives that a few steps raise on the real network, with penalties subtracted, and the settings that each needs.
RAISED: dict[str, tuple[Callable[[], Objective], dict[str, Any]]] = {
    "string": (lambda: objectives.as_objective(f"{LAYER}:3"), {}),
    "channel": (lambda: objectives.channel(LAYER, [3, 5]), {}),
    "neuron": (lambda: objectives.neuron(LAYER, 3), {}),
    "class_logit": (lambda: objectives.class_logit("classifier", "dalmatian"), {}),
    "deepdream": (lambda: objectives.deepdream(LAYER), {}),
    "channel_interpolate": (lambda: objectives.channel_interpolate(LAYER, 3, "blocks.2.1.bn1", 5), {"pictures": 3}),
    "direction": (lambda: objectives.direction(LAYER, np.eye(24)[3] + np.eye(24)[5], 1), {}),
    "direction_neuron": (lambda: objectives.direction_neuron(LAYER, np.eye(24)[3]), {}),
    "direction_cossim": (lambda: objectives.direction_cossim(LAYER, np.eye(24)[3]), {}),
    "tensor_direction": (lambda: objectives.tensor_direction(LAYER, np.ones((24, 5, 5)), 1), {}),
    "dot_compare": (lambda: objectives.dot_compare(LAYER, 1), {"references": torch.rand(1, 3, 48, 48)}),
    "total_variation": (lambda: -objectives.total_variation(), GENTLE),
    "L1": (lambda: -objectives.L1(constant=0.25), {}),
    "L2": (lambda: -objectives.L2(LAYER), {}),
    "blur_input_each_step": (lambda: -objectives.blur_input_each_step(), GENTLE),
    "blur_alpha_each_step": (lambda: -objectives.blur_alpha_each_step(), GENTLE | {"alpha": True}),
    "penalize_boundary_complexity": (lambda: objectives.penalize_boundary_complexity(8, color=0.25), {}),
    "input_diff": (lambda: -objectives.input_diff(np.linspace(0, 1, 48 * 48 * 3).reshape(48, 48, 3)), {}),
    "alignment": (lambda: objectives.alignment(LAYER), GENTLE | {"pictures": 3}),
    "diversity": (lambda: -objectives.diversity(LAYER), {"pictures": 3}),
    "sum": (lambda: objectives.channel(LAYER, 3) - 0.5 * objectives.channel("blocks.2.1.bn1", 4), {}),
}  # fmt: skip


@pytest.mark.parametrize("name", RAISED)
def test_a_few_steps_raise_it_on_a_real_network(name: str, small_model: Model) -> None:
    make, special = RAISED[name]
    objective, chosen = make(), dict(special)
    n, references = chosen.pop("pictures", None) or objective.pictures or 1, chosen.pop("references", None)
    settings = Settings(
        **{"size": 48, "steps": 9, "batch": n, "parameterization": "pixel", "transforms": "none"} | chosen
    )
    layers = [small_model.graph.layers([layer])[0] for layer in objective.layers if layer != INPUT]
    seen: list[Tensor] = []
    Renderer(small_model, layers, settings).ascend(
        objective, [(name, i) for i in range(n)], references=references, on_step=lambda _, v: seen.append(v)
    )
    rise = seen[-1] - seen[0]
    assert (rise > 0.02 * seen[0].abs()).all()


def test_every_objective_is_raised() -> None:
    made = {name for name in objectives.__all__ if name[0].islower() or name in ("L1", "L2")}
    assert made - {"parse", "as_objective"} <= set(RAISED)


def test_render_takes_a_sum_of_layers_and_what_it_cannot_fill(small_model: Model) -> None:
    objective = objectives.channel(LAYER, [3, 5]) - 0.1 * objectives.channel("blocks.2.1.bn1", 4)
    done = render(small_model, objective, size=32, steps=2, progress=False)
    assert done.images.shape == (2, 32, 32, 3)
    with pytest.raises(UsageError, match="is for 2 pictures"):
        render(small_model, objective, repeats=3)
    with pytest.raises(UsageError, match=r"2 pictures of .* in a batch of 4"):
        render(small_model, objective, batch=4)
    with pytest.raises(UsageError, match="in a batch of 4"):
        render(small_model, objectives.diversity(LAYER), repeats=3, batch=4)
