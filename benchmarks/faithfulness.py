"""How far attributions can be trusted: completeness, deletion and insertion, ablation of units, random weights, groups.

100 photographs of the ImageNet sample (the demo's where it is not at hand), EfficientNet-Lite0 with its weights, layers
from the middle to the end; the logit of the likeliest class minus that of the second. Positions, or units, are replaced
by each unit's mean over the photographs, in the order that a method gives them. The tables have the mean over
photographs of what the score falls by, on average over the curve, and the 95 % interval of the paired difference to
random positions. A good order falls early where it deletes, and late where it keeps.
"""

from __future__ import annotations

import click
import numpy as np
import torch
from bench import Bar, Report, options
from cases import NETWORKS, PACKAGES, photographs
from numpy.typing import NDArray
from torch import Tensor

from pipeline.data.decode import open_image
from pipeline.explain import Suffix, Target, ablated, attribute, matched, neuron_groups, replaced
from pipeline.explain.suffix import State
from pipeline.models import Model, open_model

LAYERS = ("blocks.4.2.add", "bn2")
CUTS = 20  # points of a curve
Order = NDArray[np.int64]


def pixels_of(model: Model, count: int) -> Tensor:
    """Return photographs as the network sees them, spread over those at hand: uint8 [n, C, H, W]."""
    source, _ = photographs()
    count = min(count, len(source.entries))
    entries = [source.entries[i] for i in np.linspace(0, len(source.entries) - 1, count).astype(int)]
    return torch.from_numpy(np.stack([model.preprocess.pixels(open_image(source.read(e))) for e in entries]))


def first_two(suffix: Suffix, state: State) -> Target:
    """Return the likeliest class of each picture against the second."""
    with torch.no_grad():
        parts = [suffix.logits(state, state.value[rows], rows) for rows in torch.arange(len(state)).split(32)]
    best = torch.cat(parts).topk(2).indices
    return Target(best[:, 0], best[:, 1])


def curve(suffix: Suffix, state: State, target: Target, picture: int, order: Order, low: Tensor, keep: bool) -> float:
    """Return the mean fall of the score while more and more positions are replaced, or are left, in this order."""
    maps = suffix.map(state.value[picture : picture + 1])[0]
    flat = maps.flatten(1)
    changed = []
    for count in np.linspace(0, len(order), CUTS + 1).round().astype(int)[: -1 if keep else None]:
        part = flat.clone()
        chosen = order[count:] if keep else order[:count]
        part[:, chosen] = low[:, None]
        changed.append(part.reshape(maps.shape))
    return float(replaced(suffix, state, target, picture, torch.stack(changed)).mean())


def orders_of(
    suffix: Suffix, state: State, target: Target, low: Tensor, found: dict[str, Tensor], picture: int
) -> dict[str, Order]:
    """Return positions, flat, from what counts most, by each method."""
    maps = suffix.map(state.value)[picture]
    height, width = maps.shape[1:]
    chance = np.random.default_rng(picture)
    blob = np.hypot(*(np.indices((height, width)) - chance.uniform(0, (height, width))[:, None, None]))
    masks = torch.eye(height * width, dtype=torch.bool).reshape(-1, 1, height, width)
    by = {name: values[picture].sum(0).flatten().numpy() for name, values in found.items()}
    by["activation alone"] = maps.norm(dim=0).flatten().numpy()
    by["one position ablated"] = ablated(suffix, state, target, picture, masks, low).numpy()
    by["random blob"] = -blob.ravel()
    by["random positions"] = chance.random(height * width)
    return {name: np.argsort(-values, kind="stable") for name, values in by.items()}


def interval(difference: NDArray[np.float64]) -> str:
    """Return the mean of paired differences and its 95 % interval."""
    half = 1.96 * difference.std(ddof=1) / np.sqrt(len(difference))
    return f"{difference.mean():+.3f} ({difference.mean() - half:+.3f} .. {difference.mean() + half:+.3f})"


def spearman(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    ranks = [np.argsort(np.argsort(x)).astype(float) for x in (a, b)]
    return float(np.corrcoef(*ranks)[0, 1])


def positions(model: Model, pixels: Tensor, layer: str, report: Report) -> None:
    suffix = Suffix(model, model.graph.layers([layer])[0])
    state = suffix.state(pixels)
    target = first_two(suffix, state)
    low = suffix.map(state.value).mean((0, 2, 3))
    results = {method: attribute(suffix, state, target, method, low) for method in ("integrated", "patching")}
    results["gradient"] = attribute(suffix, state, target, "gradient")
    complete = results["integrated"].complete
    report.notes.append(
        f"{layer}: integrated gradients add up within 1 % on {int(complete.sum())} of {len(complete)} photographs, "
        f"with {int(results['integrated'].steps.max())} steps at most; largest residue "
        f"{float(results['integrated'].residue.abs().max()):.2g}"
    )
    found = {name: result.values for name, result in results.items()}
    falls: dict[str, list[tuple[float, float]]] = {}
    for picture in range(len(state)):
        for name, order in orders_of(suffix, state, target, low, found, picture).items():
            falls.setdefault(name, []).append(
                (
                    curve(suffix, state, target, picture, order, low, keep=False),
                    curve(suffix, state, target, picture, order, low, keep=True),
                )
            )
    values = {name: np.array(pairs) for name, pairs in falls.items()}
    chance = values["random positions"]
    for name, pairs in values.items():
        report.add(layer, name, pairs[:, 0].mean(), interval(pairs[:, 0] - chance[:, 0]),
                   pairs[:, 1].mean(), interval(chance[:, 1] - pairs[:, 1]))  # fmt: skip
    gain = values["integrated"][:, 0] - chance[:, 0]
    report.bars.append(Bar(f"{layer}: deletion falls more than at random (lower end of 95 %)",
                           gain.mean() - 1.96 * gain.std(ddof=1) / np.sqrt(len(gain)), 0, at_least=True))  # fmt: skip


def units(model: Model, pixels: Tensor, layer: str, report: Report) -> None:
    """Compare the attributions of units with what ablation measures, and the ten first with ten at random."""
    suffix = Suffix(model, model.graph.layers([layer])[0])
    state = suffix.state(pixels)
    target = first_two(suffix, state)
    low = suffix.map(state.value).mean((0, 2, 3))
    masks = torch.eye(suffix.layer.channels, dtype=torch.bool)[:, :, None, None]
    measured = [ablated(suffix, state, target, p, masks, low).numpy() for p in range(len(state))]
    chance = np.random.default_rng(0)

    def ten(order: Order, picture: int) -> float:
        mask = torch.zeros(1, suffix.layer.channels, 1, 1, dtype=torch.bool)
        mask[0, order[:10]] = True
        return float(ablated(suffix, state, target, picture, mask, low)[0])

    at_random = [ten(chance.permutation(suffix.layer.channels), p) for p in range(len(state))]
    report.add(layer, "ten units at random", np.mean(at_random), "", "", "")
    for method in ("integrated", "patching", "gradient"):
        base = None if method == "gradient" else low
        by_unit = attribute(suffix, state, target, method, base).values.sum((2, 3)).double().numpy()
        falls = np.array([ten(np.argsort(-by_unit[p]), p) for p in range(len(state))])
        agree = np.mean([spearman(by_unit[p], measured[p]) for p in range(len(state))])
        report.add(layer, f"ten units by {method}", falls.mean(), interval(falls - at_random),
                   f"Spearman with ablation {agree:.2f}", "")  # fmt: skip
    best = np.array([ten(np.argsort(-measured[p]), p) for p in range(len(state))])
    report.add(layer, "ten units by ablation", best.mean(), interval(best - at_random), "", "")


def randomised(pixels: Tensor, layer: str, report: Report) -> None:
    """Compare maps of the network with those of the same network with random weights: they must differ."""
    maps = []
    for weights in (NETWORKS["lite0"][1], "random:0"):
        model = open_model(NETWORKS["lite0"][0], weights)
        suffix = Suffix(model, model.graph.layers([layer])[0])
        state = suffix.state(pixels)
        target = first_two(suffix, state)
        maps.append(attribute(suffix, state, target, steps=16).values.sum(1).flatten(1).double().numpy())
    found = [spearman(a, b) for a, b in zip(*maps, strict=True)]
    report.notes.append(f"{layer}: Spearman of maps with those of random weights {np.mean(found):+.2f} on average")
    report.bars.append(Bar(f"{layer}: Spearman of maps with random weights", abs(float(np.mean(found))), 0.3))


def groups(model: Model, pixels: Tensor, layer: str, report: Report) -> None:
    """Factorize a layer's positions: what is explained of others, how stable the groups are, and what they add."""
    suffix = Suffix(model, model.graph.layers([layer])[0])
    state = suffix.state(pixels)
    target = first_two(suffix, state)
    maps = suffix.map(state.value)
    vectors = maps.permute(0, 2, 3, 1).reshape(-1, maps.shape[1]).numpy()
    chance = np.random.default_rng(0)
    chosen = chance.permutation(len(vectors))[: min(len(vectors), 2400)]
    known, held = vectors[chosen[::2]], vectors[chosen[1::2]]
    signed = suffix.layer.signed
    for k in (4, 8, 16):
        found = neuron_groups(known, k, signed)
        starts = [neuron_groups(known, k, signed, start=seed) for seed in range(1, 11)]
        again = [neuron_groups(known[chance.integers(0, len(known), len(known))], k, signed) for _ in range(10)]
        stable = [float(np.median([np.median(matched(found.loadings, o.loadings)) for o in others]))
                  for others in (starts, again)]  # fmt: skip
        basis = np.linalg.svd(known, full_matrices=False)[2][:k]
        pca = 1 - ((held - held @ basis.T @ basis) ** 2).sum() / (held**2).sum()
        coefficients = np.linalg.lstsq(found.loadings.T, held.T, rcond=None)[0]
        ours = 1 - ((held - coefficients.T @ found.loadings) ** 2).sum() / (held**2).sum()
        report.notes.append(
            f"{layer}, {k} groups: their span gives back {ours:.0%} of held-out positions, {k} principal directions "
            f"{pca:.0%}; median matched cosine {stable[0]:.2f} over ten starts, {stable[1]:.2f} over ten bootstraps"
        )
    gradient = attribute(suffix, state, target, "integrated").gradient
    falls, at_random = [], []
    for picture in range(len(state)):
        own = maps[picture].numpy()
        factored = neuron_groups(own.reshape(len(own), -1).T, 6, signed)
        parts = np.stack([factored.part(g).T.reshape(own.shape) for g in range(len(factored.loadings))])
        first = parts[int(np.einsum("chw,kchw->k", gradient[picture].numpy(), parts).argmax())]
        noise = chance.normal(size=(4, *own.shape)).astype(np.float32)
        if not signed:
            noise = np.abs(noise)
        noise *= np.linalg.norm(first) / np.linalg.norm(noise.reshape(4, -1), axis=1)[:, None, None, None]
        changed = torch.from_numpy(own[None] - np.concatenate([first[None], noise]))
        fall = replaced(suffix, state, target, picture, changed).numpy()
        falls.append(fall[0])
        at_random.append(fall[1:].mean())
    difference = np.array(falls) - np.array(at_random)
    report.notes.append(
        f"{layer}: without the group of the highest attribution the score falls by {np.mean(falls):.2f}, without "
        f"random directions of the same length by {np.mean(at_random):.2f}; difference {interval(difference)}"
    )
    report.bars.append(Bar(f"{layer}: first group less random directions (lower end of 95 %)",
                           difference.mean() - 1.96 * difference.std(ddof=1) / np.sqrt(len(difference)), 0,
                           at_least=True))  # fmt: skip


@click.command(help=__doc__)
@options
def main(quick: bool, json_file: str | None) -> None:
    report = Report(
        "Faithfulness of attributions",
        ("layer", "order", "deleted: fall", "more than random", "kept: fall", "less than random"),
    )
    model = open_model(*NETWORKS["lite0"])
    pixels = pixels_of(model, 6 if quick else 100)
    for layer in LAYERS[1:] if quick else LAYERS:
        positions(model, pixels, layer, report)
        groups(model, pixels, layer, report)
    for layer in LAYERS[1:] if quick else LAYERS[:1]:
        units(model, pixels, layer, report)
        randomised(pixels, layer, report)
    raise SystemExit(report.finish(PACKAGES, f"0; photographs: {photographs()[1]}", json_file))


if __name__ == "__main__":
    main()
