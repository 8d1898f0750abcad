"""Does the input keep up with the network? The scan from files against the slower of decoding and the pass alone.

`decode`: JPEG files are read, hashed, decoded, resized and cropped by the scan's own threads. `pass`: the whole scan of
decoded batches. `together`: the stage from files. Further rows decode the same photographs from the tar shards that
`pack` writes, and through a DataLoader with the model's transforms in Pillow.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import click
import torch
from bench import Bar, Report, interleaved, options
from cases import NETWORKS, PACKAGES, Scan, config_of, photographs
from PIL import Image
from torch import Tensor

from pipeline.commands.pack import Packing, pack
from pipeline.data.loading import batches
from pipeline.data.sources import open_source

IMAGES = {"lite0": 256, "googlenet": 128, "resnet50": 96}


class _Files(torch.utils.data.Dataset[Tensor]):
    """The usual way to write it: a dataset of files with Pillow and torchvision's transforms, same preprocessing."""

    def __init__(self, scan: Scan) -> None:
        self.files = sorted((scan.folder / "photographs").iterdir())
        self.preprocess = scan.job.spec.model.preprocess

    def __getitem__(self, item: int) -> Tensor:
        from torchvision.transforms import v2
        from torchvision.transforms.v2 import InterpolationMode

        p = self.preprocess
        steps = [
            v2.Resize(p.resize, InterpolationMode(p.interpolation)), v2.CenterCrop(p.height), v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True), v2.Normalize(p.mean, p.std),
        ]  # fmt: skip
        with Image.open(self.files[item]) as image:
            picture: Tensor = v2.Compose(steps)(image.convert("RGB"))
        return picture

    def __len__(self) -> int:
        return len(self.files)


def measure(network: str, rounds: int, images: int, report: Report) -> None:
    scan = Scan(network, images)
    sides = {"decode": scan.decode, "pass": scan.scan_decoded, "together": scan.scan_files}
    timings = interleaved(sides, rounds, say=network)
    larger = max((timings["decode"], timings["pass"]), key=lambda s: s.median)
    for name, samples in timings.items():
        report.add(network, name, images / samples.median, samples.over(larger), samples.spread)
    report.bars.append(Bar(f"{network}: together / larger of decode and pass", timings["together"].over(larger), 1.35))
    if network == "lite0":
        others(scan, rounds, images, report)
    scan.close()


def others(scan: Scan, rounds: int, images: int, report: Report) -> None:
    """Measure decoding alone, of the same photographs in other containers and with other loaders."""
    sizes = {}
    for kind in ("jpeg", "raw"):
        config = config_of("lite0", f"folder:{scan.folder}/photographs")
        sizes[kind] = pack(config, Path(scan.folder) / kind, Packing(kind), progress=False).bytes
    sides = {"decode": scan.decode}
    for kind in sizes:
        source = open_source(f"webdataset:{scan.folder}/{kind}/*.tar")

        def decode(source: object = source) -> None:
            entries = source.entries  # type: ignore[attr-defined]
            read = lambda i: source.read(entries[i])  # type: ignore[attr-defined]  # noqa: E731
            with ThreadPoolExecutor(scan.job.runtime.threads) as pool:
                for _ in batches(range(len(entries)), read, scan.job.spec.model.preprocess.pixels, 16, pool):
                    pass

        sides[f"decode, packed {kind}"] = decode
    loader = torch.utils.data.DataLoader(_Files(scan), 16, num_workers=scan.job.runtime.threads)
    sides["DataLoader, Pillow transforms"] = lambda: [None for _ in loader]
    timings = interleaved(sides, rounds, say="containers")
    for name, samples in list(timings.items())[1:]:
        report.add("lite0", name, images / samples.median, samples.over(timings["decode"]), samples.spread)
    files = sum(p.stat().st_size for p in (scan.folder / "photographs").iterdir())
    report.notes.append("in the last rows, the ratio is seconds divided by those of decode: below 1 is faster")
    report.notes.append(
        f"bytes of {images} photographs: files {files / 1e6:.1f} MB, packed jpeg {sizes['jpeg'] / 1e6:.1f} MB, "
        f"packed raw {sizes['raw'] / 1e6:.1f} MB"
    )


@click.command(help=__doc__)
@click.option("--network", "networks", multiple=True, type=click.Choice(list(NETWORKS)), help="Only this network.")
@options
def main(networks: tuple[str, ...], quick: bool, json_file: str | None) -> None:
    report = Report("Input against the network", ("network", "side", "images/s", "ratio", "seconds, spread"))
    for network in networks or (["lite0"] if quick else NETWORKS):
        measure(network, 3 if quick else 7, IMAGES[network] // (4 if quick else 1), report)
    raise SystemExit(report.finish(PACKAGES, f"none; photographs: {photographs()[1]}", json_file))


if __name__ == "__main__":
    main()
