"""Recipes: functions that do what Lucid's notebooks do.

A picture to explain may be a PIL image or an array [H, W, C], either uint8 or float in 0..1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from pipeline.featurevis import objectives
from pipeline.featurevis.ascent import Rendering
from pipeline.featurevis.objectives.directions import Vector
from pipeline.featurevis.objectives.units import parse
from pipeline.featurevis.render import render
from pipeline.featurevis.renderer import Renderer
from pipeline.featurevis.settings import Settings
from pipeline.featurevis.subnetwork import Subnetwork
from pipeline.featurevis.transforms import Jitter, RandomRotate, RandomScale
from pipeline.models import Model
from pipeline.runtime.devices import DTYPES
from store.errors import UsageError

Explained = Image.Image | NDArray[Any] | Tensor
# A caricature must stay aligned with its picture, so these move it little and add no border.
STEADY = (RandomScale((0.95, 0.975, 1.0, 1.025, 1.05)), RandomRotate(tuple(range(-5, 6))), Jitter(8))


@dataclass(frozen=True)
class Grid:
    """A picture's activations in a layer, rendered part by part.

    `image`: uint8 [rows * cell, columns * cell, C], one rendered cell per part of the picture.
    `strength`: float32 [rows, columns], the Euclidean length of each part's mean activation vector.
    """

    image: NDArray[np.uint8]
    strength: NDArray[np.float32]


def direction(model: Model, layer: str, vector: Vector, *, cossim_pow: float = 1, **settings: Any) -> Rendering:
    """Render a direction in a layer's activation space. `vector`: [C], or [n, C] for one direction per picture."""
    return render(model, objectives.direction(layer, vector, cossim_pow), **settings)


def interpolate(model: Model, first: str, second: str, count: int = 6, **settings: Any) -> Rendering:
    """Render `count` pictures that go from one unit, "LAYER:CHANNEL", to another.

    The pictures share coarse layers, so that similar things appear at the same positions, as in Mordvintsev et al.,
    Differentiable Image Parameterizations (2018).
    """
    if count < 2:
        raise UsageError(f"count = {count}: must be at least 2")
    objective = objectives.channel_interpolate(*parse(first), *parse(second))
    return render(model, objective, repeats=count, **{"parameterization": "shared", **settings})


def caricature(
    model: Model, layer: str, pictures: Explained | Sequence[Explained], *, cossim_pow: float = 1, **settings: Any
) -> Rendering:
    """Render each picture as a layer sees it, exaggerated: keep the direction of its activations and lengthen them.

    A higher `cossim_pow` stays closer to the picture. `size` is the model's input size by default.
    """
    single = isinstance(pictures, (Image.Image, np.ndarray, Tensor))
    given: Sequence[Explained] = [pictures] if single else pictures  # type: ignore[list-item, assignment]
    p = model.preprocess
    chosen = {"size": (p.height, p.width), "transforms": STEADY, **settings}
    canvas = Settings(size=chosen["size"]).canvas
    references = torch.cat([_fitted(as_pixels(picture, model), canvas) for picture in given])
    objective = objectives.dot_compare(layer, cossim_pow)
    return render(model, objective, repeats=len(given), references=references, **chosen)


def activation_grid(
    model: Model, layer: str, picture: Explained, *, grid: int = 7, cell: int = 64, cossim_pow: float = 1,
    **settings: Any,
) -> Grid:  # fmt: skip
    """Cut a picture into `grid` rows and columns and render what the layer responds to in each part.

    There are fewer rows or columns if the layer's map has fewer. `cell`: side of a rendered part in pixels. `batch`
    cells are rendered together, 16 by default. Olah et al., The Building Blocks of Interpretability (2018).
    """
    activations = activations_of(model, layer, picture)
    rows, columns = (min(grid, side) for side in activations.shape[1:])
    cells = F.adaptive_avg_pool2d(activations, (rows, columns)).flatten(1).T  # [rows * columns, C]
    chosen = {"size": cell, "batch": 16, **settings}
    progress, size = chosen.pop("progress", True), chosen["batch"]
    layers = model.graph.layers([layer])
    renderer, done = Renderer(model, layers, Settings(**chosen)), []
    with tqdm(total=len(cells), desc=f"activation_grid({layer})", unit="cell", disable=not progress) as bar:
        for first in range(0, len(cells), size):
            part = cells[first : first + size]
            filled = torch.cat([part, part[-1:].expand(size - len(part), -1)])
            objective = objectives.direction(layers[0].name, filled, cossim_pow)
            starts = [(objective.text_of(0), min(first + i, len(cells) - 1)) for i in range(size)]
            done.append(renderer.ascend(objective, starts).first(len(part)).images)
            bar.update(len(part))
    tiles = np.concatenate(done).reshape(rows, columns, *done[0].shape[1:])
    image = tiles.transpose(0, 2, 1, 3, 4).reshape(rows * tiles.shape[2], columns * tiles.shape[3], -1)
    strength = cells.norm(dim=1).reshape(rows, columns).cpu().numpy()
    return Grid(image, strength.astype(np.float32))


@torch.no_grad()
def activations_of(model: Model, layer: str, picture: Explained) -> Tensor:
    """Return a layer's activations on one picture at the model's input size: float32 [C, H, W]."""
    layers = model.graph.layers([layer])
    p = model.preprocess
    network = Subnetwork(model, layers, dtype=DTYPES["float32"])
    return network(_fitted(as_pixels(picture, model), (p.height, p.width)).to(network.device))[layers[0].name][0]


def as_pixels(picture: Explained, model: Model) -> Tensor:
    """Return a picture as float32 [1, C, H, W] in 0..1.

    A PIL image is converted to grey if the model has one channel, otherwise to RGB. Raises UsageError if the picture
    does not have the shape [H, W, C] with the model's number of channels.
    """
    channels = model.preprocess.channels
    if isinstance(picture, Image.Image):
        picture = np.atleast_3d(np.array(picture.convert("L" if channels == 1 else "RGB")))
    x = torch.as_tensor(picture)
    if x.ndim != 3 or x.shape[2] != channels:
        raise UsageError(f"expected a picture [H, W, {channels}], found {list(x.shape)}")
    x = x.float() / 255 if x.dtype == torch.uint8 else x.float()
    return x.permute(2, 0, 1)[None]


def _fitted(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Crop the largest centred window with the aspect ratio of `size` (height, width) and resize it to `size`."""
    height, width = x.shape[2:]
    share = min(height / size[0], width / size[1])
    h, w = max(int(size[0] * share), 1), max(int(size[1] * share), 1)
    top, left = (height - h) // 2, (width - w) // 2
    window = x[:, :, top : top + h, left : left + w]
    return F.interpolate(window, size, mode="bilinear", align_corners=False, antialias=True)
