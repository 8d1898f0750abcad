"""Layers whose positions are places of the picture in another order, and layers whose positions are no places."""

from __future__ import annotations

from pathlib import Path

import h5py
import pandas as pd
import pytest
import torch
from support import small_networks

import query
from pipeline import driver
from pipeline.config import parse_config
from pipeline.data.decode import open_image
from pipeline.job import Job
from store import export, layout, verify

SOURCE = "python:support.small_networks:windowed"
WINDOWS, LOOKS, BACK = "inside", "heads", "relu_1"
SPATIAL = {WINDOWS: True, LOOKS: False, "softmax": False, BACK: True}


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    sections = {
        "model": {"source": SOURCE, "layers": list(SPATIAL)},
        "dataset": {"source": "package:demo", "limit": 8},
        "scan": {"batch_size": 4, "topk": 4, "border": 0},
    }
    job = Job(parse_config(sections, "test"), tmp_path_factory.mktemp("spatial") / "store", progress=False)
    driver.run(job, ("index", "calibrate", "scan", "fold", "examples"))
    return job


def _examples(job: Job) -> pd.DataFrame:
    return pd.read_parquet(job.store.root / layout.table(job.store.run, "top_examples"))


def _pixels(job: Job, image_id: int) -> torch.Tensor:
    preprocess = job.spec.model.preprocess
    pixels = preprocess.pixels(open_image(job.dataset.read_image(image_id)))
    return preprocess.normalize(torch.from_numpy(pixels)[None].float() / 255)


def test_the_table_says_which_are_places(job: Job) -> None:
    table = pd.read_parquet(job.store.root / layout.table(job.store.run, "layers")).set_index("layer")
    assert table["spatial"].to_dict() == SPATIAL
    assert table.loc[WINDOWS, ["height", "width", "rf_size", "rf_stride"]].tolist() == [16, 16, 4, 4]
    assert table.loc[LOOKS, ["height", "width"]].tolist() == [256, 256]
    assert table.loc[LOOKS, "rf_global"]


def test_places_in_windows_are_those_of_the_picture(job: Job) -> None:
    network, _ = small_networks.windowed()
    assert isinstance(network, small_networks.Windowed)
    examples = _examples(job)
    for row in examples[(examples["layer"] == WINDOWS) & (examples["direction"] == "highest")].itertuples():
        with torch.no_grad():
            values = network.inside(network.stem(_pixels(job, row.image_id)).relu().permute(0, 2, 3, 1))
        assert float(values[0, int(row.y), int(row.x), row.channel]) == pytest.approx(row.value, abs=1e-5)
        assert (row.box_y0, row.box_x0) == (4 * row.y, 4 * row.x)


def test_what_has_no_place_has_no_position_no_box_and_no_heat(job: Job) -> None:
    spatial = _examples(job)["layer"].map(SPATIAL)
    for name in ("y", "x", "box_y0", "box_x0", "box_y1", "box_x1"):
        assert (_examples(job)[name].notna() == spatial).all()
    tail = pd.read_parquet(job.store.root / layout.tail_by_unit(job.store.run, LOOKS))
    assert len(tail)
    assert tail["y"].isna().all()
    with h5py.File(job.store.root / layout.example_images(job.store.run)) as file:
        assert set(file["maps"]) == {WINDOWS, BACK}
    assert not verify.verify(job.store.root).problems


def test_questions_say_nothing_of_places_there(job: Job, tmp_path: Path) -> None:
    new = tmp_path / "new.png"
    open_image(job.dataset.read_image(3)).transpose(0).save(new)
    with query.open(job.store.root, model_code=True) as scope:
        answers = {name: [scope.activations(f"{name}:1"), scope.top_images(f"{name}:1")] for name in SPATIAL}
        images = [scope.activations_of(3), scope.activations_of(str(new))]
        for name, spatial in SPATIAL.items():
            of_layer = [frame[frame["layer"] == name] for frame in images]
            for frame in (*answers[name], *of_layer):
                assert len(frame)
                assert frame["y"].notna().any() == frame["x"].notna().any() == spatial
            assert scope.contact_sheet(f"{name}:1").size[0] > 0


def test_an_export_of_such_layers_opens(job: Job, tmp_path: Path) -> None:
    export.export(job.store.root, job.store.run, tmp_path / "part", [LOOKS])
    assert not verify.verify(tmp_path / "part").problems
    with query.open(tmp_path / "part") as scope:
        assert scope.top_images(f"{LOOKS}:1")["y"].isna().all()
