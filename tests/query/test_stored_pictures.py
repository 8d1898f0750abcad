"""Contact sheets and the pictures they are made of."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support import synthetic_store
from support.synthetic_store import LAYERS, Synthetic

import query
from pipeline import driver
from pipeline.config import parse_config
from pipeline.job import Job
from query.presentation import drawing
from query.presentation.contact_sheet import MARGIN
from query.record import stored_pictures
from query.record.stored_pictures import Example
from query.scope import Scope
from query.sql.database import Limits
from store import codes
from store.errors import UsageError


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Synthetic:
    return synthetic_store.build(tmp_path_factory.mktemp("pictures") / "store")


@pytest.fixture(scope="module")
def scope(made: Synthetic) -> Iterator[Scope]:
    with query.open(made.root) as opened:
        yield opened


def test_examples_are_the_pictures_and_maps_of_those_images(made: Synthetic, scope: Scope) -> None:
    unit = scope._unit("stem.relu:1", None, None)
    ids = scope.top_images("stem.relu:1", synthetic_store.COUNT)["image_id"].to_numpy()
    for image_id, example in zip(ids, stored_pictures.examples(unit, ids, maps=True), strict=True):
        assert example is not None
        wanted = made.pictures[image_id].astype(int)
        assert np.abs(example.pixels.astype(int) - wanted).mean() < 12, "JPEG of that very picture"
        assert example.heat is not None
        grid = made.maps["stem.relu"][image_id, 1]
        assert np.abs(example.heat / 255 - grid / grid.max()).max() < 0.01
    assert stored_pictures.examples(unit, np.array([10**6]), maps=False) == [None]


@pytest.mark.parametrize("unit", [f"{x.name}:{c}" for x in LAYERS for c in (1, 2, 3)])
def test_contact_sheet_keeps_its_margins(scope: Scope, unit: str) -> None:
    """Dead, constant and signed units too: white margins all around, something within."""
    sheet = np.asarray(scope.contact_sheet(unit)).astype(int)
    ink = np.argwhere((sheet != 255).any(2))
    top, left = ink.min(0)
    bottom, right = sheet.shape[0] - 1 - ink.max(0)[0], sheet.shape[1] - 1 - ink.max(0)[1]
    assert left in range(MARGIN - 2, MARGIN + 4)
    assert right in range(MARGIN - 3, MARGIN + 4)
    assert top >= MARGIN // 2
    assert bottom >= MARGIN // 2
    assert (sheet != 255).any(2).mean() > 0.02


def test_the_box_marks_the_receptive_field() -> None:
    grey = np.full((32, 32, 3), 128, np.uint8)
    tile = np.asarray(drawing.example_tile(Example(grey, None), 320, (8, 4, 16, 20), (32, 32)))
    marked = np.argwhere((tile != 128).any(2))
    assert np.abs(marked.min(0) - [80, 40]).max() <= 2
    assert np.abs(marked.max(0) - [160, 200]).max() <= 2
    whole = np.asarray(drawing.example_tile(Example(grey, None), 320, (0, 0, 32, 32), (32, 32)))
    assert (whole == 128).all(), "a field that is the whole picture needs no frame"


def test_heat_lies_where_the_map_is_high() -> None:
    grey, heat = np.full((28, 28, 3), 128, np.uint8), np.zeros((14, 14), np.uint8)
    heat[3, 10] = 255
    tile = np.asarray(drawing.example_tile(Example(grey, heat), 140, None, (28, 28))).astype(int)
    assert np.abs(np.array(np.unravel_index(tile[:, :, 0].argmax(), (140, 140))) - [35, 105]).max() <= 5
    assert (tile[80:, :60] == 128).all()


def test_ticks_and_text() -> None:
    for low, high in ((0, 6), (-0.3, 0.001), (1e-7, 2e-7), (-1200, 9000)):
        found = drawing.ticks(low, high)
        assert 2 <= len(found) <= 9
        assert all(low - 1e-12 <= t <= high + 1e-12 for t in found)
        assert np.allclose(np.diff(found), found[1] - found[0])
    assert drawing.font(15).getlength(drawing.fitted("a very long label indeed", 15, 60)) <= 60
    assert drawing.fitted("short", 15, 600) == "short"


def test_visualization_files_must_be_recorded(tmp_path_factory: pytest.TempPathFactory) -> None:
    made = synthetic_store.build(tmp_path_factory.mktemp("gone") / "store", stages=3)
    with query.open(made.root) as scope, pytest.raises(UsageError, match="has no visualizations"):
        scope.visualization("block.0.add:1")


def test_a_run_keeps_pictures_around_quantiles_that_its_config_asks_for(tmp_path: Path) -> None:
    """With few examples and quantiles, every picture of `quantile_images` is kept; without them, some are not."""
    (tmp_path / "photographs").mkdir()
    chance = np.random.default_rng(3)
    for number in range(60):
        pixels = chance.integers(0, 256, (12, 12, 3), np.uint8)
        Image.fromarray(pixels).resize((64, 64)).save(tmp_path / "photographs" / f"{number:02d}.png")
    (tmp_path / "photographs" / "07.png").write_bytes(b"no picture")
    kept = {}
    for name, quantiles in (("with", [0.9, 0.25]), ("without", [])):
        body = {
            "model": {"source": "python:support.plain_network:plain", "weights": "random:0"},
            "dataset": {"source": f"folder:{tmp_path / 'photographs'}", "name": "photographs", "max_bad_fraction": 0.1},
            "examples": {"count": 1, **({"quantiles": quantiles} if quantiles else {})},
            "scan": {"topk": 3},
        }
        job = Job(parse_config(body, "test"), tmp_path / name, progress=False)
        driver.run(job, ("index", "calibrate", "scan", "fold", "examples"))
        with query.open(tmp_path / name, limits=Limits(isolated=False)) as scope:
            (dense,) = scope.records.values()
            known = set(dense.kept_pictures[0].tolist())
            layer = dense.run.layers[0]
            asked = set()
            for channel in range(layer.channels):
                found = scope.quantile_images(f"{layer.name}:{channel}", 6)
                assert list(dict.fromkeys(found["quantile"])) == (quantiles or list(codes.QUANTILES))
                asked |= set(found["image_id"])
            kept[name] = asked <= known
    assert kept == {"with": True, "without": False}
