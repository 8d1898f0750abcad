"""Feature visualization against torch-lucent 0.1.8, and against a bare forward and backward pass.

The unit is one step of one picture on a canvas of 128 px. Both sides use their default transforms, the same allocator
and the whole machine. lucent uses one thread per core in each operation, which is torch's default. Ours runs one batch
on each core, as the stage does.

lucent always runs its whole network at 224 px. Ours runs the truncated, folded network, either at the same 224 px
("model") or at the size of the canvas ("canvas"), which is Lucid's setting. The bars compare with lucent as its users
run it, one unit per call. Another column shows lucent in batches of 8, with its objectives summed by hand.

"bare" is the same truncated, folded network, run the same way on ready pictures of those sizes: forward, the channel's
mean, and backward to the pictures. It has no transforms and no parameterization.

Random weights take as long as trained ones. The first table compares the pictures themselves, of trained weights: see
`picture_values`. Example: python benchmarks/featurevis.py --quick
"""

from __future__ import annotations

import statistics
import sys
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import click
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))  # run from a checkout, installed or not

from benchmarks import picture_values
from benchmarks.bench import Bar, Report, interleaved, options
from pipeline.compat.modules import remove_hooks
from pipeline.featurevis import Renderer, Settings, objectives
from pipeline.featurevis.transforms import compose
from pipeline.models import Model, open_model
from pipeline.runtime.devices import set_up, threads_of_worker

BATCH, CANVAS, CHANNEL, SEED = 16, 128, 3, 0
CORES = threads_of_worker(0, 1)
RATIOS = {
    "lucent / model": ("lucent 1", "ours model"), "lucent / canvas": ("lucent 1", "ours canvas"),
    "lucent 8 / model": ("lucent 8", "ours model"), "lucent 8 / canvas": ("lucent 8", "ours canvas"),
    "model / bare": ("ours model", "bare model"), "canvas / bare": ("ours canvas", "bare canvas"),
}  # fmt: skip
# source: (our layer, lucent's name of the same module) for an early, a middle and a late layer
NETWORKS = {
    "timm:tf_efficientnet_lite0": (
        ("blocks.1.1.add", "blocks_1_1"), ("blocks.3.1.add", "blocks_3_1"), ("blocks.6.0.bn3", "blocks_6_0"),
    ),
    "torchvision:googlenet": (
        ("inception3a.cat", "inception3a"), ("inception4c.cat", "inception4c"), ("inception5b.cat", "inception5b"),
    ),
}  # fmt: skip


def _ours(model: Model, layer: str, sees: str, steps: int) -> tuple[Callable[[], None], Callable[[], None]]:
    """Return the renderer's steps and the bare passes of the same sizes.

    Each call does `steps` steps of one batch on every core.
    """
    layers = model.graph.layers([layer])
    renderer = Renderer(model, layers, Settings(size=CANVAS, batch=BATCH, input=sees, seed=SEED, redirected=0))
    objective = objectives.channel(layer, CHANNEL)
    ascents = [renderer.begin(objective, [(core, i) for i in range(BATCH)]) for core in range(CORES)]
    chain, network = renderer.settings.chain, renderer.network
    done = [0] * CORES

    def ready(step: int) -> torch.Tensor:
        x = compose(chain, torch.rand(1, 3, CANVAS, CANVAS), _draw(step))
        size = (network.preprocess.height, network.preprocess.width) if sees == "model" else tuple(x.shape[2:])
        return inputs[size].detach().requires_grad_()

    sizes = {tuple(compose(chain, torch.rand(1, 3, CANVAS, CANVAS), _draw(i)).shape[2:]) for i in range(200)}
    sizes |= {(network.preprocess.height, network.preprocess.width)}
    inputs = {s: torch.randn(BATCH, 3, *s).contiguous(memory_format=torch.channels_last) for s in sizes}

    def rendered(core: int) -> None:
        for _ in range(steps):
            ascents[core].step()

    def bare(core: int) -> None:
        for _ in range(steps):
            x = ready(done[core])
            (activations,) = network.plain(x)
            torch.autograd.grad(activations[:, CHANNEL].mean((1, 2)).sum(), x)
            done[core] += 1

    return _on_every_core(rendered), _on_every_core(bare)


def _on_every_core(work: Callable[[int], None]) -> Callable[[], None]:
    def run() -> None:
        with ThreadPoolExecutor(CORES) as pool:
            list(pool.map(work, range(CORES)))

    return run


def _draw(step: int) -> Any:
    import numpy as np

    return np.random.default_rng((SEED, step))


def _lucents(network: torch.nn.Module, layer: str, batch: int, steps: int) -> Callable[[], None]:
    from lucent.optvis import objectives as theirs
    from lucent.optvis import param, render

    def rendered() -> None:
        torch.set_num_threads(CORES)
        render.render_vis(
            network, theirs.channel(layer, CHANNEL), lambda: param.image(CANVAS, batch=batch), thresholds=(steps,),
            progress=False, show_image=False,
        )  # fmt: skip
        torch.set_num_threads(1)
        for module in network.modules():  # lucent leaves its hooks, and the next call would run them too
            remove_hooks(module)

    return rendered


@click.command(help=__doc__)
@options
@click.option("--network", type=click.Choice([*NETWORKS]), help="Measure only this network.  [default: both]")
@click.option("--sheet", metavar="FILE", help="Write the pictures that are compared, lucent's above ours.")
def main(quick: bool, json_file: str | None, network: str | None, sheet: str | None) -> None:
    warnings.simplefilter("ignore")
    set_up()
    torch.manual_seed(SEED)
    rounds, steps = (2, 4) if quick else (4, 8)
    report = Report(
        "featurevis: milliseconds per step of one picture (median, and lowest .. highest of the rounds)",
        (
            "network", "layer", "lucent", "lucent, 8", "ours, model", "ours, canvas", "x lucent", "x, canvas",
            "x lucent, 8", "x, canvas", "/ bare", "/ bare, canvas",
        ),
    )  # fmt: skip
    ratios: dict[str, list[float]] = {name: [] for name in RATIOS}
    for source, layers in NETWORKS.items():
        if network not in (None, source) or (quick and network is None and source.startswith("torchvision")):
            continue
        model = open_model(source, "random:0")
        for ours, theirs in layers:
            _compare(report, ratios, model, ours, theirs, rounds, steps)
    report.notes.append(
        f"canvas {CANVAS} px; ours: one batch of {BATCH} on each of {CORES} cores, steps after the first 16"
    )
    mean = {name: statistics.mean(values) for name, values in ratios.items()}
    report.bars = [
        Bar("lucent / ours, the same network input, mean", mean["lucent / model"], 3.5, at_least=True),
        Bar("lucent / ours, the canvas' own size, mean", mean["lucent / canvas"], 9, at_least=True),
        Bar("ours / bare, model's size, mean", mean["model / bare"], 1.25),
        Bar("ours / bare, the canvas' own size, mean", mean["canvas / bare"], 1.25),
    ]
    against = (
        f"{mean['lucent 8 / model']:.2f}x at the same network input, {mean['lucent 8 / canvas']:.2f}x at the canvas'"
    )
    report.notes.append(f"against lucent in batches of 8: {against}")
    values = picture_values.compare(quick, sheet)
    packages = ("torch", "torchvision", "timm", "torch-lucent", "unitscope")
    missed = values.finish(packages, f"{SEED}", None)
    report.bars += values.bars
    sys.exit(report.finish(packages, f"{SEED}", json_file) or missed)


def _compare(
    report: Report, ratios: dict[str, list[float]], model: Model, ours: str, theirs: str, rounds: int, steps: int
) -> None:
    sides: dict[str, Callable[[], None]] = {}
    work = {"lucent 1": steps, "lucent 8": steps // 4 * 8}
    sides["lucent 1"] = _lucents(model.network, theirs, 1, steps)
    sides["lucent 8"] = _lucents(model.network, theirs, 8, steps // 4)
    for sees in ("model", "canvas"):
        sides[f"ours {sees}"], sides[f"bare {sees}"] = _ours(model, ours, sees, steps // 2)
        work[f"ours {sees}"] = work[f"bare {sees}"] = steps // 2 * BATCH * CORES
    samples_of = interleaved(sides, rounds, say=f"{model.name} {ours}")
    each = {name: [1000 * s / work[name] for s in samples.seconds] for name, samples in samples_of.items()}
    times = [
        f"{statistics.median(each[name]):.2f} ({min(each[name]):.2f} .. {max(each[name]):.2f})"
        for name in ("lucent 1", "lucent 8", "ours model", "ours canvas")
    ]
    for name, (above, below) in RATIOS.items():
        ratios[name].append(statistics.median(x / y for x, y in zip(each[above], each[below], strict=True)))
    report.add(model.name, ours, *times, *(f"{values[-1]:.2f}" for values in ratios.values()))


if __name__ == "__main__":
    main()
