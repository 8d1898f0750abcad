"""EfficientNet-Lite0 for small pictures, for tests that need trained weights and not the size they were trained for.

A factory for `python:support.small_lite0:small_lite0`, which takes the same weights as the timm model.
"""

from __future__ import annotations

from typing import Any

import timm
from torch import nn

from pipeline.models.efficientnet_lite import PREPROCESS

SIZE = 96  # of 224 pixels, which cost five times as much


def small_lite0() -> tuple[nn.Module, dict[str, Any]]:
    described = {"height": SIZE, "width": SIZE, "resize": SIZE, "mean": PREPROCESS.mean, "std": PREPROCESS.std}
    return timm.create_model("tf_efficientnet_lite0"), described
