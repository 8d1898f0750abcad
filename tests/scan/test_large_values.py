"""Units whose values are so large that their squares overflow float32: every number is the scaled one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from pipeline import driver
from pipeline.config import parse_config
from pipeline.job import Job
from pipeline.scan.batch_statistics import empty
from pipeline.scan.reduce.cpu import reduce_numba
from pipeline.scan.reduce.torch import reduce_torch
from store import layout

SCALES = (2.0**66, 2.0**120)
SCALED = {"mean": 1, "variance": 2, "minimum": 1, "maximum": 1, "max_mean": 1, "max_sd": 1, "q50": 1, "q99": 1}


def _run(name: str, root: Path) -> dict[str, pd.DataFrame]:
    sections = {
        "model": {"source": f"python:support.small_networks:{name}", "layers": "all", "name": "m"},
        "dataset": {"source": "package:demo", "limit": 12},
    }
    job = Job(parse_config(sections, "test"), root, progress=False)
    driver.run(job, ("index", "calibrate", "scan", "fold"))
    tables = {t: pd.read_parquet(root / layout.table(job.store.run, t)) for t in ("units", "top_examples", "neighbors")}
    return {name: table[table["layer"] == "mul"].reset_index(drop=True) for name, table in tables.items()}


def test_tables_are_scaled(tmp_path: Path) -> None:
    small = _run("scaled_by_1", tmp_path / "1")
    for scale, name in zip(SCALES, ("scaled_by_66", "scaled_by_120"), strict=True):
        large = _run(name, tmp_path / name)
        for column, power in SCALED.items():
            wanted = small["units"][column].to_numpy(np.float64) * scale**power
            np.testing.assert_allclose(large["units"][column].to_numpy(np.float64), wanted, rtol=1e-6, err_msg=column)
        for table in ("top_examples", "neighbors"):
            for column in small[table].columns:
                if column in ("value", "mean"):
                    wanted = small[table][column].to_numpy(np.float64) * scale
                    np.testing.assert_allclose(large[table][column].to_numpy(np.float64), wanted, rtol=1e-4)
                elif column == "correlation":
                    np.testing.assert_allclose(large[table][column], small[table][column], atol=1e-5)
                else:
                    assert large[table][column].tolist() == small[table][column].tolist(), column


@pytest.mark.parametrize("reduce", [reduce_numba, reduce_torch])
@pytest.mark.parametrize("value", [1e20, -3e38, float("inf"), float("nan")])
def test_only_what_is_not_finite_has_sums_that_are_not(reduce: object, value: float) -> None:
    x: Tensor = torch.randn(2, 3, 5, 7, generator=torch.Generator().manual_seed(0))
    x[1, 2, 3, 4] = value
    out = empty(2, 3)
    reduce(x, slice(0, 3), True, out)  # type: ignore[operator]
    finite = bool(np.isfinite(value))
    assert bool(torch.isfinite(out.square[1, 2])) == bool(torch.isfinite(out.sum[1, 2])) == finite
    flat = x.double().flatten(2)
    wanted = flat.square().sum(2)
    kept = torch.ones(2, 3, dtype=torch.bool)
    kept[1, 2] = finite
    torch.testing.assert_close(out.square[kept], wanted[kept], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(out.sum[kept], flat.sum(2)[kept], rtol=1e-6, atol=1e-5)
