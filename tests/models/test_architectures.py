"""A scan with random weights over eight photographs succeeds on every architecture, whatever its layout.

Small networks of each family stand for the large ones, which differ only in depth and width. The layers of the large
models are counted in tests/graph/test_layers.py. GoogLeNet and Inception v3 have no small version and are used as they
are.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from support import faults

from pipeline import driver
from pipeline.config import parse_config, to_toml
from pipeline.job import Job
from store import layout, verify

SMALL = (
    "alexnet", "vgg", "resnet", "densenet", "mobilenet_v3", "efficientnet", "convnext", "regnet", "shufflenet",
    "mnasnet", "vit", "swin",
)  # fmt: skip
SOURCES = (
    *(f"python:support.small_networks:{name}" for name in SMALL),
    "torchvision:googlenet", "torchvision:inception_v3",
)  # fmt: skip
STAGES = ("index", "calibrate", "scan", "fold")


@pytest.mark.parametrize("source", SOURCES)
def test_scan_ends(source: str, tmp_path: Path) -> None:
    model = {"source": source} if source.startswith("python:") else {"source": source, "weights": "random:0"}
    sections = {"model": model, "dataset": {"source": "package:demo", "limit": 8}, "scan": {"batch_size": 4}}
    job = Job(parse_config(sections, "test"), tmp_path / "store", progress=False)
    if source.startswith("python:"):
        driver.run(job, STAGES)
    else:  # a large network: in a process of its own, whose memory goes with it
        (tmp_path / "test.toml").write_text(to_toml(sections))
        stages = [word for stage in STAGES for word in ("--stage", stage)]
        faults.complete("run", tmp_path / "test.toml", "--store", job.store.root, *stages)
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
