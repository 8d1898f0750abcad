"""A scan with random weights over eight photographs succeeds on every architecture, whatever its layout.

Small networks of each family stand for the large ones, which differ only in depth and width, or small pictures for
large ones. The layers of the large models are counted in tests/graph/test_layers.py.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from pipeline import driver
from pipeline.config import parse_config
from pipeline.job import Job
from store import layout, verify

SMALL = (
    "alexnet", "vgg", "resnet", "densenet", "mobilenet_v3", "efficientnet", "convnext", "regnet", "shufflenet",
    "mnasnet", "vit", "swin", "googlenet", "inception",
)  # fmt: skip
STAGES = ("index", "calibrate", "scan", "fold")


@pytest.mark.parametrize("name", SMALL)
def test_scan_ends(name: str, tmp_path: Path) -> None:
    model = {"source": f"python:support.small_networks:{name}"}
    sections = {"model": model, "dataset": {"source": "package:demo", "limit": 8}, "scan": {"batch_size": 2}}
    job = Job(parse_config(sections, "test"), tmp_path / "store", progress=False)
    driver.run(job, STAGES)
    units = pd.read_parquet(job.store.root / layout.table(job.store.run, "units"))
    layers = pd.read_parquet(job.store.root / layout.table(job.store.run, "layers"))
    assert len(units) == layers["channels"].sum() > 0
    examples = pd.read_parquet(job.store.root / layout.table(job.store.run, "top_examples"))
    signed = set(layers["layer"][layers["signed"]])
    lowest = examples[examples["direction"] == "lowest"]
    assert set(lowest["layer"]) == signed
    places = examples.merge(layers[["layer", "height", "width"]], on="layer")
    assert ((places["y"] < places["height"]) & (places["x"] < places["width"])).all()
    assert ((places["box_y0"] >= 0) & (places["box_y0"] < places["box_y1"])).all()
    predictions = pd.read_parquet(job.store.root / layout.table(job.store.run, "predictions"))
    assert len(predictions) == 8 * 5
    assert not verify.verify(job.store.root).problems
