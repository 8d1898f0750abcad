"""Pictures that were never scanned: the model of a store, run by the pipeline on a small network and then asked."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import query
import unitscope
from query.scope import Scope
from store.errors import UsageError

CONFIG = """
[model]
source = "python:toy_of_test_query_live:make"
weights = "random:4"
name = "toy"

[dataset]
source = "folder:pictures"
name = "noise"
"""

FACTORY = """
from torch import nn

def make():
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 12, 3, 2, 1), nn.BatchNorm2d(12), nn.ReLU6(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 4),
    )
    return network, {"height": 32, "width": 32, "resize": 32}
"""


def noise(seed: int) -> Image.Image:
    random = np.random.default_rng(seed)
    return Image.fromarray(random.integers(0, 256, (6, 6, 3), dtype=np.uint8)).resize((44, 36))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("live")
    (folder / "toy_of_test_query_live.py").write_text(FACTORY)
    (folder / "toy.toml").write_text(CONFIG)
    for i in range(30):
        file = folder / "pictures" / ("ab"[i % 2]) / f"{i:02d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        noise(i).save(file)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        stages = [part for stage in ("index", "calibrate", "scan", "fold") for part in ("--stage", stage)]
        unitscope.cli.main(["run", "toy.toml", "--store", "store", *stages], standalone_mode=False)
    return folder


@pytest.fixture
def scope(place: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scope]:
    monkeypatch.chdir(place)
    with query.open("store", model_code=True) as opened:
        yield opened


def test_a_scanned_picture_measures_the_same_again(scope: Scope, place: Path) -> None:
    stored = scope.activations_of("a/04.png")
    shutil.copy(place / "pictures/a/04.png", place / "copy.png")
    live = scope.activations_of("copy.png")
    known = stored["y"].notna()
    assert known.mean() > 0.4
    assert np.allclose(stored["value"][known], live["value"][known], atol=1e-5)
    assert (stored["y"] == live["y"])[known].all()
    assert (stored["x"] == live["x"])[known].all()
    assert scope.similar_images("copy.png", layer="4", k=1)["path"].tolist() == ["a/04.png"]


def test_a_new_picture_against_torch_and_counting(scope: Scope, place: Path) -> None:
    """value, mean and place from an eager forward pass; tail_p by counting the images that reach the value."""
    noise(1000).save(place / "new.png")
    live = scope.activations_of("new.png", layer="4").reset_index(drop=True)
    from pipeline.models import open_model

    model = open_model("python:toy_of_test_query_live:make", "random:4")
    assert isinstance(model.network, nn.Sequential)
    with torch.inference_mode():
        maps = model.network[:5](model.preprocess(noise(1000))[None])[0].numpy()
    flat = maps.reshape(12, -1)
    assert np.allclose(live["value"], flat.max(1), atol=1e-5)
    assert np.allclose(live["mean"], flat.mean(1), atol=1e-5)
    assert (live["y"] * maps.shape[2] + live["x"]).tolist() == flat.argmax(1).tolist()
    for row in live.itertuples():
        stored = scope.activations(f"4:{row.channel}")
        reached = (stored["value"] >= row.value - 1e-6) & stored["exact"]
        assert row.tail_p >= (1 + reached.sum()) / 31 - 1e-9
        assert row.tail_p <= (2 + (stored["value"] >= row.value - 1e-6).sum()) / 31 + 1e-9
    assert set(live["n"]) == {30}


def test_a_record_is_counted_alone(scope: Scope, place: Path) -> None:
    """A picture of hard edges beats every image on many units: tail_p = 1 / (n + 1) there, and more elsewhere."""
    board = np.indices((6, 6)).sum(0) % 2 * 255
    Image.fromarray(board.astype(np.uint8)).resize((36, 36), Image.Resampling.NEAREST).save(place / "new.png")
    live = scope.activations_of("new.png")
    maximum = scope.sql("SELECT maximum FROM units JOIN layers USING (layer) ORDER BY layer_index, channel").df()
    record = live["value"].to_numpy() > maximum["maximum"].to_numpy()
    assert record.sum() > 3
    assert np.allclose(live["tail_p"][record], 1 / 31)
    assert (live["tail_p"][~record] >= 2 / 31 - 1e-9).all()


def test_top_units_of_a_new_picture(scope: Scope, place: Path) -> None:
    noise(1001).save(place / "new.png")
    everything, frame = scope.activations_of("new.png"), scope.top_units("new.png", 100)
    assert len(frame) == ((everything["value"] > 0) | (everything["layer"] == "7")).sum()
    keys = list(zip(frame["tail_p"], -frame["z"], strict=True))
    assert keys == sorted(keys)
    assert frame["y"].notna().all()


def test_code_runs_only_when_allowed(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    noise(1).save(place / "new.png")
    with query.open("store") as scope, pytest.raises(UsageError, match="--allow-model-code"):
        scope.top_units("new.png")


def test_other_weights_are_refused(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pipeline.models

    monkeypatch.chdir(place)
    noise(1).save(place / "new.png")
    opened = pipeline.models.open_model
    monkeypatch.setattr(pipeline.models, "open_model", lambda source, _, name: opened(source, "random:5", name))
    with query.open("store", model_code=True) as scope, pytest.raises(UsageError, match="are not those the store"):
        scope.top_units("new.png")


def test_a_file_that_is_no_picture(scope: Scope, place: Path) -> None:
    (place / "words.png").write_text("these are words")
    with pytest.raises(UsageError, match=r"^picture words\.png: "):
        scope.top_units("words.png")
