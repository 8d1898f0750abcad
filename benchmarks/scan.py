"""The scan against the bare forward pass of the same folded network on the same decoded batches.

"bare" is the network with folded batch norms in torch's own operations, channels last, with one batch per core. Rows:

\b
- our pass: the network that the scan runs, with padding and clips fused into its convolutions, without taps
- taps: the same with taps, which keep every per-image statistic in memory
- scan: the stage `scan` itself, with sums over images and with partials written, hashed and committed
- eager taps, eager hooks: torch's own reductions of the same layers, or of the output of every module
- dump and numpy: activations copied to memory and reduced with numpy
- zennit-crp (extra `bench`), which also runs a backward pass

The eager rows, the dump and zennit-crp are the usual ways to obtain such results. The ratio does not include `fold`,
which runs once after all shards and not on the GPU.
"""

from __future__ import annotations

import contextlib
import copy
import io
import shutil
import tempfile
from collections.abc import Callable

import click
import numpy as np
import torch
from bench import Bar, Report, interleaved, options
from cases import PACKAGES, Scan, photographs
from torch import Tensor

from pipeline import graph
from pipeline.graph import Layer

LIMITS = {"lite0": 1.25, "googlenet": 1.10, "resnet50": 1.10}
IMAGES = 256  # two shards, so that one is written while the other is measured, as in any longer scan


def _reduced(x: Tensor) -> tuple[Tensor, ...]:
    flat = x.flatten(2)
    high, position = flat.max(2)
    return high, position, flat.amin(2), flat.mean(2), flat.square().mean(2), (flat > 0).float().mean(2)


def eager_taps(scan: Scan) -> Callable[[], None]:
    """Return a pass that reduces the scan's layers with torch: max, argmax, min, mean, squares, share above zero."""
    reduced: dict[str, tuple[Tensor, ...]] = {}

    def tap(layer: Layer, x: Tensor) -> None:
        reduced[layer.name] = _reduced(x)

    return _tapped(scan, tap)


def eager_hooks(scan: Scan) -> Callable[[], None]:
    """Return the usual solution: a forward hook with the same reductions on every module of the folded network."""
    reduced: dict[str, tuple[Tensor, ...]] = {}
    network = copy.deepcopy(scan.folded)

    def hook(name: str) -> Callable[..., None]:
        def reduce(_: object, __: object, output: object) -> None:
            if isinstance(output, Tensor) and output.dim() == 4:
                reduced[name] = _reduced(output)

        return reduce

    for name, module in network.named_modules():
        if not list(module.children()):
            module.register_forward_hook(hook(name))
    return lambda: scan.passes(network)


def dumped(scan: Scan) -> Callable[[], None]:
    """Return a pass that copies activations out and reduces them with numpy."""

    def tap(layer: Layer, x: Tensor) -> None:
        flat = x.flatten(2).numpy().copy()
        _ = (flat.max(2), flat.argmax(2), flat.min(2), flat.mean(2), np.square(flat).mean(2), (flat > 0).mean(2))

    return _tapped(scan, tap)


def _tapped(scan: Scan, tap: Callable[[Layer, Tensor], None]) -> Callable[[], None]:
    tapped = graph.with_taps(scan.folded, scan.job.spec.layers, tap)
    return lambda: scan.passes(tapped)


def zennit_crp(scan: Scan, images: int) -> tuple[Callable[[], None], int]:
    """Return `FeatureVisualization.run` of zennit-crp and the number of its layers, which are those that are modules.

    It uses zennit's EpsilonPlus and all threads.
    """
    from crp.attribution import CondAttribution
    from crp.concepts import ChannelConcept
    from crp.visualization import FeatureVisualization
    from zennit.composites import EpsilonPlus

    pixels = np.concatenate([b.pixels[: len(b.ids)] for b in scan.decoded])[:images]
    network = scan.job.spec.model.network

    class _Dataset(torch.utils.data.Dataset[tuple[Tensor, int]]):
        def __getitem__(self, item: int) -> tuple[Tensor, int]:
            return scan.job.spec.model.preprocess.normalize(torch.from_numpy(pixels[item])[None].float() / 255)[0], 0

        def __len__(self) -> int:
            return len(pixels)

    modules = dict(network.named_modules())
    names = [layer.name for layer in scan.job.spec.layers if layer.name in modules]
    folder = tempfile.mkdtemp(prefix="unitscope-crp-")

    def run() -> None:
        for parameter in network.parameters():
            parameter.requires_grad_(True)
        concept = ChannelConcept()
        attribution = CondAttribution(network)
        shown = FeatureVisualization(attribution, _Dataset(), dict.fromkeys(names, concept), path=folder)
        torch.set_num_threads(scan.job.runtime.streams)
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            shown.run(EpsilonPlus(), 0, len(pixels), 16, 100)
        torch.set_num_threads(1)
        shutil.rmtree(folder)

    return run, len(names)


def measure(network: str, rounds: int, images: int, report: Report, peers: bool) -> None:
    scan = Scan(network, images)
    sides = {
        "bare forward pass": scan.forward, "our pass, no taps": scan.arranged_forward, "taps": scan.measure,
        "scan": scan.scan_decoded,
    }  # fmt: skip
    if peers:
        sides |= {"eager taps": eager_taps(scan), "eager hooks": eager_hooks(scan), "dump and numpy": dumped(scan)}
    timings = interleaved(sides, rounds, say=network)
    for name, samples in timings.items():
        each = samples.median / images * 1e3
        report.add(network, name, images, each, samples.over(timings["bare forward pass"]), samples.spread)
    report.bars.append(
        Bar(f"{network}: scan / bare", timings["scan"].over(timings["bare forward pass"]), LIMITS[network])
    )
    if peers:
        ratio = timings["eager hooks"].over(timings["scan"])
        report.bars.append(Bar(f"{network}: eager hooks / scan", ratio, 4.0, at_least=True))
        against_crp(scan, report, timings["scan"].median / images)
    scan.close()


def against_crp(scan: Scan, report: Report, ours: float) -> None:
    images = 32
    try:
        run, layers = zennit_crp(scan, images)
    except ImportError:
        report.notes.append("zennit-crp is not installed (pip install 'unitscope[bench]'): its row is missing")
        return
    crp = interleaved({"zennit-crp": run}, 3, say="zennit-crp")["zennit-crp"]
    each = crp.median / images
    report.add(
        "lite0",
        f"zennit-crp, {layers} of {len(scan.job.spec.layers)} layers",
        images,
        each * 1e3,
        each / ours,
        crp.spread,
    )
    report.notes.append("zennit-crp's ratio is to the scan, both per picture")
    report.bars.append(Bar("lite0: zennit-crp / scan, per picture", each / ours, 5.0, at_least=True))


@click.command(help=__doc__)
@click.option("--network", "networks", multiple=True, type=click.Choice(list(LIMITS)), help="Only this network.")
@options
def main(networks: tuple[str, ...], quick: bool, json_file: str | None) -> None:
    columns = ("network", "side", "images", "ms per image", "ratio", "seconds, spread")
    report = Report("The scan against the bare forward pass", columns)
    for network in networks or (["lite0"] if quick else LIMITS):
        images = IMAGES // (4 if quick else 1)
        measure(network, 3 if quick else 7, images, report, peers=network == "lite0")
    raise SystemExit(
        report.finish(
            [*PACKAGES, "timm", "zennit-crp"],
            f"weights random:0 but for lite0; photographs: {photographs()[1]}",
            json_file,
        )
    )


if __name__ == "__main__":
    main()
