"""A scan with random weights over eight photographs ends on every architecture, whatever its layout."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from pipeline import driver
from pipeline.config import parse_config
from pipeline.job import Job
from store import layout, verify

MODELS = (
    "alexnet", "vgg19", "googlenet", "inception_v3", "resnet50", "densenet121", "mobilenet_v3_large", "efficientnet_b0",
    "convnext_tiny", "regnet_y_400mf", "shufflenet_v2_x1_0", "mnasnet1_0", "vit_b_16", "swin_t",
)  # fmt: skip
STAGES = ("index", "calibrate", "scan", "fold")


@pytest.mark.parametrize("name", MODELS)
def test_scan_ends(name: str, tmp_path: Path) -> None:
    config = parse_config(
        {
            "model": {"source": f"torchvision:{name}", "weights": "random:0"},
            "dataset": {"source": "package:demo", "limit": 8},
            "scan": {"batch_size": 8},
        },
        name,
    )
    job = Job(config, tmp_path / "store", progress=False)
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
