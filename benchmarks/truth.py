"""Are the numbers true? Every unit of the demo's network, on photographs, against plain torch, Pillow and numpy.

Four fifths of the photographs are scanned, and the rest are pictures that were never scanned. Independently of the
pipeline, Pillow resizes the photographs, the untouched network runs on them with hooks, and numpy derives what the
store, and answers about new pictures, must hold.

- pixels: bytes that differ from Pillow's, of all pictures.
- codes: |decoded - value| in standard deviations of the unit; correlations of units of a layer; AUC of a class.
- tails: tail_p of pictures that were never scanned, against (1 + images that have at least the value) / (N + 1).
- trust: the best natural example before the clip, against the best of all stored examples at the clip.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import click
import numpy as np
import torch
from bench import Bar, Report, options
from cases import PACKAGES, config_of, photographs
from numpy.typing import NDArray
from PIL import Image

import query
from pipeline import driver
from pipeline.data.decode import open_image
from pipeline.featurevis import Picture
from pipeline.graph import Layer, truncated, unclipped
from pipeline.job import Job
from pipeline.models import Model
from pipeline.runtime.devices import set_up
from pipeline.stages.visualization_metrics import VisualizationMetrics
from store import hdf5, layout

Floats = NDArray[np.float64]
CLASSES = 20  # classes of which AUCs are compared: halves of the photographs, drawn at random
LAYER = "blocks.2.1.bn2"  # of which all units' best examples are compared


def by_pillow(model: Model, image: Image.Image) -> NDArray[np.uint8]:
    """Resize and crop with Pillow alone: uint8 [3, H, W]."""
    p = model.preprocess
    short = min(image.size)
    size = tuple(p.resize if side == short else int(p.resize * side / short) for side in image.size)
    small = image.convert("RGB").resize((size[0], size[1]), getattr(Image.Resampling, p.interpolation.upper()))
    left, top = round((small.width - p.width) / 2.0), round((small.height - p.height) / 2.0)
    return np.asarray(small.crop((left, top, left + p.width, top + p.height))).transpose(2, 0, 1)


def maxima(model: Model, layers: Sequence[Layer], pixels: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
    """The spatial maximum of every unit, by hooks on the untouched network: float32 [pictures, units]."""
    modules = dict(model.network.named_modules())
    sums = [layer for layer in layers if layer.name not in modules]
    found: dict[str, list[NDArray[np.float32]]] = {layer.name: [] for layer in layers}

    def keep(name: str, y: torch.Tensor) -> None:
        found[name].append((y.amax((2, 3)) if y.ndim == 4 else y).numpy().copy())

    # A residual sum is what the block around it returns.
    watched = {layer.name: layer.name.removesuffix(".add") if layer in sums else layer.name for layer in layers}
    handles = [
        modules[path].register_forward_hook(lambda _m, _x, y, name=name: keep(name, y))
        for name, path in watched.items()
    ]
    mean, std = (torch.tensor(x).view(1, -1, 1, 1) for x in (model.preprocess.mean, model.preprocess.std))
    with torch.no_grad():
        for first in range(0, len(pixels), 16):
            x = torch.from_numpy(np.stack(pixels[first : first + 16])).float() / 255
            model.network((x - mean) / std)
    for handle in handles:
        handle.remove()
    return np.concatenate([np.concatenate(found[layer.name]) for layer in layers], axis=1)


def decoded(job: Job) -> Iterator[NDArray[np.float32]]:
    """Yield per layer what the record says about each image: float32 [C, N], the mean of each value's code."""
    root, run = job.store.root, job.store.run
    for layer in job.spec.layers:
        codes = hdf5.read(root / layout.codes_by_unit(run, layer.name), "max")
        means = hdf5.read(root / layout.array(run, "codes"), f"{layer.name}/max/means")
        yield means[np.arange(layer.channels)[:, None], codes]


def aucs(values: NDArray[np.float32], positive: NDArray[np.bool_]) -> Floats:
    """AUC of each unit for images of a class against the others; ties count half. values: [C, N]."""
    from scipy.stats import rankdata

    ranks = rankdata(values, axis=1)
    n = positive.sum()
    return (ranks[:, positive].sum(axis=1) - n * (n + 1) / 2) / (n * (len(positive) - n))


def compare_codes(job: Job, truth: NDArray[np.float32], report: Report) -> None:
    errors, correlations, areas = [], [0.0], [0.0]
    random = np.random.default_rng(0)
    classes = [random.random(len(truth)) < 0.5 for _ in range(CLASSES)]
    column = 0
    for values in decoded(job):
        exact = truth[:, column : column + len(values)].T
        column += len(values)
        sd = exact.std(axis=1, dtype=np.float64)
        varies = sd > 0
        errors.append(np.abs(values - exact).max(axis=1)[varies] / sd[varies])
        one, two = (np.corrcoef(x[varies].astype(np.float64)) for x in (values, exact))
        correlations.append(float(np.abs(one - two).max()))
        areas += [float(np.abs(aucs(values, c) - aucs(exact, c)).max()) for c in classes]
    largest = np.concatenate(errors)
    report.add("codes", "largest |decoded - value| / sd", float(largest.max()), float(np.median(largest)))
    report.add("codes", "largest error of a correlation", max(correlations), float(np.median(correlations)))
    report.add("codes", "largest error of an AUC", max(areas), float(np.median(areas)))
    report.bars += [
        Bar("codes: |decoded - value| / sd", float(largest.max()), 0.15),
        Bar("codes: error of a correlation", max(correlations), 1e-3),
        Bar("codes: error of an AUC", max(areas), 1e-2),
    ]


def compare_tails(job: Job, truth: NDArray[np.float32], new: Sequence[Path], report: Report) -> None:
    ordered = np.sort(truth, axis=0)
    n, units = ordered.shape
    first = {layer.name: int(job.spec.units.offsets[layer.index]) for layer in job.spec.layers}
    slack = 1e-4 * np.maximum(ordered.std(axis=0), np.abs(ordered).max(axis=0) * 1e-2)
    worst, beyond, total = [], 0, 0
    with query.open(job.store.root) as scope:
        for file in new:
            answer = scope.top_units(str(file), k=units)  # the units that the picture excites
            columns = (answer["layer"].map(first) + answer["channel"]).to_numpy()
            pairs = zip(columns, answer["value"].to_numpy(), strict=True)
            # Values of the two networks differ by rounding, so images within it may count or not.
            most, least = np.array(
                [n - np.searchsorted(ordered[:, i], [v - slack[i], v + slack[i]], side="left") for i, v in pairs]
            ).T
            found = answer["tail_p"].to_numpy() * (n + 1) - 1
            off = np.maximum(np.maximum(found - most, least - found), 0) / (n + 1)
            worst.append(float(off.max()))
            beyond += int((off > 0.01).sum())
            total += len(off)
    report.add("tails", f"largest error of tail_p, {len(new)} pictures", max(worst), float(np.median(worst)))
    report.add("tails", "share of values that are off by more than 0.01", beyond / total, 0.0)
    report.bars += [
        Bar("tails: error of tail_p", max(worst), 0.05),
        Bar("tails: off by more than 0.01", beyond / total, 0.01),
    ]


def compare_trust(job: Job, pixels: Sequence[NDArray[np.uint8]], report: Report) -> None:
    (layer,) = (layer for layer in job.spec.layers if layer.name == LAYER)
    open_network = truncated(unclipped(job.spec.model.graph.module, layer), layer)
    x = torch.from_numpy(np.stack(pixels)).float() / 255
    with torch.no_grad():
        parts = [open_network(job.spec.model.preprocess.normalize(part)).amax((2, 3)) for part in x.split(16)]
    exact = torch.cat(parts).numpy()
    with query.open(job.store.root) as scope:
        sql = "SELECT channel, image_id, value FROM top_examples WHERE layer = $1 AND direction = 'highest'"
        stored = scope.sql(sql, [layer.name]).df()
    bound = np.inf if layer.upper_bound is None else layer.upper_bound
    wanted = np.full(layer.channels, np.nan)  # dead units have no examples
    for channel, rows in stored.groupby("channel"):
        clipped = rows["value"].to_numpy() >= bound
        ids = rows["image_id"].to_numpy()[clipped] if clipped.any() else rows["image_id"].to_numpy()[:1]
        wanted[int(channel)] = exact[ids, int(channel)].max()
    metrics = VisualizationMetrics(job, layer)
    found = metrics._best([Picture(channel) for channel in range(layer.channels)], "neuron", True)
    off = np.abs(np.array(found) / wanted - 1)[np.isfinite(wanted)]
    at_clip = int((exact.max(axis=0) > bound).sum())
    report.add(
        "trust", f"error of the best example, {layer.channels} units, {at_clip} beyond the clip", float(off.max()), 0.0
    )
    report.bars.append(Bar("trust: error of the best example before the clip", float(off.max()), 1e-3))


@click.command(help=__doc__)
@options
def main(quick: bool, json_file: str | None) -> None:
    set_up()
    report = Report("The numbers against plain torch, Pillow and numpy", ("kind", "what", "largest", "median"))
    source, name = photographs()
    entries = source.entries[: 50 if quick else 500]
    with tempfile.TemporaryDirectory(prefix="unitscope-truth-") as temporary:
        folder = Path(temporary)
        new = []
        (folder / "scanned").mkdir()
        (folder / "new").mkdir()
        for i, entry in enumerate(entries):
            file = folder / ("new" if i % 5 == 4 else "scanned") / f"{i:05d}{Path(entry.path).suffix}"
            file.write_bytes(source.read(entry))
            new += [file] if i % 5 == 4 else []
        job = Job(config_of("lite0", f"folder:{folder}/scanned"), folder / "store", progress=False)
        driver.run(job, ("index", "calibrate", "scan", "fold", "examples"))
        model = job.spec.model
        scanned = [open_image(job.dataset.read_image(int(i))) for i in job.dataset.readable]
        pixels = [by_pillow(model, image) for image in scanned]
        differ = sum(int((model.preprocess.pixels(image) != p).sum()) for image, p in zip(scanned, pixels, strict=True))
        report.add("pixels", f"bytes that differ from Pillow's, {len(pixels)} photographs", differ, 0)
        report.bars.append(Bar("pixels: bytes that differ", differ, 0))
        truth = maxima(model, job.spec.layers, pixels)
        compare_codes(job, truth, report)
        compare_tails(job, truth, new[: 4 if quick else len(new)], report)
        compare_trust(job, pixels, report)
    report.notes.append(f"{len(pixels)} photographs of {name}, {truth.shape[1]} units")
    raise SystemExit(report.finish((*PACKAGES, "scipy"), "classes 0", json_file))


if __name__ == "__main__":
    main()
