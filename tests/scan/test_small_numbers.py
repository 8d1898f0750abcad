"""Few images, equal images and more asked for than there is: all questions are answered, and the numbers are right."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from support.plain_network import plain

import query
from pipeline import driver
from pipeline.config import parse_config
from pipeline.job import Job
from query.scope import Scope
from query.sql.database import Limits
from store import layout
from store.errors import UsageError


def _job(folder: Path, seeds: list[int], broken: int = 0) -> Job:
    (folder / "pictures").mkdir()
    for number, seed in enumerate(seeds):
        pixels = np.random.default_rng(seed).integers(0, 256, (64, 64, 3), np.uint8)
        Image.fromarray(pixels).save(folder / "pictures" / f"{number}.png")
    for number in range(broken):
        (folder / "pictures" / f"broken{number}.png").write_bytes(b"x")
    sections = {
        "model": {"source": "python:support.plain_network:plain", "layers": "all", "name": "plain"},
        "dataset": {"source": f"folder:{folder / 'pictures'}", "name": "few", "max_bad_fraction": 1.0},
        "scan": {"topk": 500, "lowest": 500},
        "visualize": {"layers": ["2"], "units_per_layer": 1, "size": 32, "steps": 1, "input": "canvas"},
        "compute": {"device": "cpu", "threads": 1},
    }
    return Job(parse_config(sections, "test"), folder / "store", progress=False)


def _maxima(folder: Path, seeds: list[int]) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """The maxima of the first ReLU, from the untouched network: float64 [images, channels]."""
    network, description = plain()
    first = network.eval()[:3]
    mean, std = (torch.tensor(description[name]).view(3, 1, 1) for name in ("mean", "std"))
    rows = []
    for number in range(len(seeds)):
        pixels = np.asarray(Image.open(folder / "pictures" / f"{number}.png"))
        x = (torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 255 - mean) / std
        with torch.no_grad():
            rows.append(first(x[None]).amax((2, 3))[0].double().numpy())
    return np.stack(rows)


def _ask(scope: Scope, images: int) -> None:
    for k in (1, images, 500):
        assert len(scope.top_units(0, k))
        assert len(scope.top_images("2:0", k)) == min(k, images)
        scope.similar_units("2:0", k, layer="*")
        assert len(scope.similar_images(0, "2", k)) == min(k, images - 1)
        assert len(scope.both("2:0", "2:1", k=k)) == min(k, images)
    assert scope.contact_sheet("2:0").width > 100
    assert len(scope.activations("5:1")) == images
    assert len(scope.separating_units([0], [images - 1]))
    for ask in (scope.unit_states, scope.class_selectivity, lambda: scope.image_summary(0), lambda: scope.unit("2:0")):
        ask()
    for needs_classes in (scope.polysemantic_units, lambda: scope.units_for_class(0)):
        with pytest.raises(UsageError, match="classes"):
            needs_classes()


@pytest.mark.parametrize("seeds", [[0], [0, 1], [0, 1, 2], [7, 7, 7, 7]], ids=["1", "2", "3", "4 equal"])
def test_few_images(seeds: list[int], tmp_path: Path) -> None:
    job = _job(tmp_path, seeds, broken=1)
    driver.run(job)
    maxima = _maxima(tmp_path, seeds)
    units = pd.read_parquet(job.store.root / layout.table(job.store.run, "units"))
    first = units[units["layer"] == "2"].sort_values("channel")
    np.testing.assert_allclose(first["maximum"], maxima.max(0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(first["max_mean"], maxima.mean(0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(first["max_sd"], maxima.std(0), rtol=1e-3, atol=1e-5)
    if len(set(seeds)) == 1:
        assert (units["max_sd"] == 0).all(), "equal images differ in nothing"
    with query.open(job.store.root, limits=Limits(isolated=False)) as scope:
        _ask(scope, len(seeds))
        found = scope.top_images("2:0", 9)
        assert found["n"].tolist() == [len(seeds)] * len(seeds)
        assert found["image_id"].tolist() == sorted(range(len(seeds)), key=lambda i: (-maxima[i, 0], i))
        assert all(math.isfinite(v) for v in scope.similar_units("2:0", 500, layer="*")["correlation"])


def test_no_image_at_all(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no picture could be decoded"):
        driver.run(_job(tmp_path, [], broken=3))
