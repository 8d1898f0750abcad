"""The recipes do what their names say on the real network at a small input size."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data

from pipeline.featurevis import activation_grid, caricature, direction, interpolate, render
from pipeline.featurevis.recipes import activations_of, as_pixels
from pipeline.models import Model
from store.errors import UsageError

LAYER = "blocks.2.1.bn1"
QUICK: dict[str, Any] = {"progress": False, "steps": 24}


def _map(model: Model, image: np.ndarray[Any, Any]) -> torch.Tensor:
    return activations_of(model, LAYER, image)


def test_activations_are_the_networks_own(small_model: Model) -> None:
    picture = data.astronaut()[:400, :300]
    seen: list[torch.Tensor] = []
    hook = small_model.network.get_submodule(LAYER).register_forward_hook(lambda *found: seen.append(found[2]))
    try:
        middle = torch.from_numpy(picture[50:350].copy()).permute(2, 0, 1)[None] / 255
        x = torch.nn.functional.interpolate(middle, (64, 64), mode="bilinear", antialias=True)
        with torch.no_grad():
            small_model.network(small_model.preprocess.normalize(x))
    finally:
        hook.remove()
    for given in (picture, Image.fromarray(picture), torch.from_numpy(picture.copy()), picture / 255):
        torch.testing.assert_close(activations_of(small_model, LAYER, given), seen[0][0], atol=2e-4, rtol=1e-3)


def test_a_caricature_has_its_pictures_direction_and_more_of_it(small_model: Model) -> None:
    pictures = [data.chelsea(), data.coffee()]
    done = caricature(small_model, LAYER, pictures, **QUICK)
    assert done.images.shape == (2, 64, 64, 3)
    its = [_map(small_model, p).flatten() for p in pictures]
    mine = [_map(small_model, image).flatten() for image in done.images]
    grey = _map(small_model, np.full((64, 64, 3), 128, np.uint8)).flatten()
    cosine = torch.nn.functional.cosine_similarity
    for i, j in ((0, 1), (1, 0)):
        assert cosine(mine[i], its[i], 0) > cosine(mine[i], its[j], 0)
        assert cosine(mine[i], its[i], 0) > cosine(grey, its[i], 0)
        assert (mine[i] @ its[i]) > (grey @ its[i])


def test_an_interpolation_goes_from_one_unit_to_the_other(small_model: Model) -> None:
    first, second = f"{LAYER}:3", f"{LAYER}:10"
    done = interpolate(small_model, first, second, count=4, size=64, **QUICK)
    means = torch.stack([_map(small_model, image).mean((1, 2)) for image in done.images])
    assert means[0, 3] > means[3, 3]
    assert means[3, 10] > means[0, 10]
    pictures = done.images.astype(np.float64).reshape(4, -1)
    alone = [render(small_model, unit, size=64, **QUICK).images.ravel().astype(np.float64) for unit in (first, second)]
    assert np.corrcoef(pictures[0], pictures[3])[0, 1] > np.corrcoef(*alone)[0, 1] + 0.1, "layers are shared"
    with pytest.raises(UsageError, match="count = 1"):
        interpolate(small_model, first, second, count=1)


def test_a_direction_of_two_channels_raises_both(small_model: Model) -> None:
    vector = np.zeros(240)
    vector[[3, 10]] = 1
    before, after = (
        direction(small_model, LAYER, vector, size=64, steps=steps, progress=False).images[0] for steps in (0, 24)
    )
    rise = _map(small_model, after).mean((1, 2)) - _map(small_model, before).mean((1, 2))
    assert min(rise[3], rise[10]) > rise.mean()


def test_a_grids_cells_are_what_the_layer_has_there(small_model: Model) -> None:
    """The activations of a cell point more in the direction of its own part of the picture than of other parts."""
    picture = data.astronaut()
    found = activation_grid(small_model, LAYER, picture, grid=2, cell=48, batch=3, **QUICK)
    assert found.image.shape == (96, 96, 3)
    parts = torch.nn.functional.adaptive_avg_pool2d(_map(small_model, picture), (2, 2)).flatten(1).T
    np.testing.assert_allclose(found.strength.ravel(), parts.norm(dim=1), rtol=1e-4)
    cells = [found.image[y : y + 48, x : x + 48] for y in (0, 48) for x in (0, 48)]
    mine = torch.stack([_map(small_model, cell).mean((1, 2)) for cell in cells])
    unit = torch.nn.functional.normalize
    alike = unit(mine - mine.mean(0), dim=1) @ unit(parts - parts.mean(0), dim=1).T
    assert (alike.argmax(1) == torch.arange(4)).sum() >= 3
    single = activation_grid(small_model, LAYER, picture, grid=2, cell=48, batch=3, **QUICK)
    assert np.array_equal(single.image, found.image)


def test_pictures_of_the_wrong_shape_are_refused(small_model: Model) -> None:
    with pytest.raises(UsageError, match=r"expected a picture \[H, W, 3\], found \[10, 10\]"):
        as_pixels(np.zeros((10, 10)), small_model)
    assert as_pixels(Image.new("L", (7, 5)), small_model).shape == (1, 3, 5, 7)
