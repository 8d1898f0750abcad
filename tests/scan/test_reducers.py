"""Compare the fused reducer and the torch reducer with numpy, in every memory layout that a layer can have."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from pipeline.scan.batch_statistics import check_finite, empty
from pipeline.scan.reduce import Reducer
from pipeline.scan.reduce.cpu import reduce_numba
from pipeline.scan.reduce.torch import reduce_torch
from store.errors import UsageError

REDUCERS = [reduce_numba, reduce_torch]


def _layouts(x: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return views [n, C, H, W] of the same values in different memory layouts."""
    n, c, h, w = x.shape
    tokens = torch.cat([torch.full((n, 2, c), 99.0), x.flatten(2).transpose(1, 2)], 1)  # two prefix tokens
    return {
        "nchw": x.contiguous(),
        "channels_last": x.contiguous(memory_format=torch.channels_last),
        "nhwc": x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2),
        "tokens": tokens[:, 2:].transpose(1, 2).unflatten(2, (h, w)),
    }


@pytest.mark.parametrize("reduce", REDUCERS)
@pytest.mark.parametrize(
    "shape", [(3, 5, 7, 9), (2, 300, 4, 4), (4, 17, 1, 1), (1, 8, 1, 6), (2, 3, 6, 1), (2, 1, 5, 5)]
)
def test_against_numpy(reduce: Reducer, shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(sum(shape))
    values = np.round(rng.standard_normal(shape), 1).astype(np.float32)  # ties, zeros and both signs
    flat = values.reshape(*shape[:2], -1)
    for name, x in _layouts(torch.from_numpy(values)).items():
        buffers = empty(shape[0], shape[1] + 4)
        buffers.max[:] = buffers.sum[:] = 0
        reduce(x, slice(2, shape[1] + 2), True, buffers)
        out = buffers.measured(np.ones(shape[1] + 4))
        units = np.s_[:, 2 : shape[1] + 2]
        assert (out.max[units] == flat.max(2)).all(), name
        assert (out.argmax[units] == flat.argmax(2)).all(), f"{name}: the first maximum in row-major order"
        assert (out.min[units] == flat.min(2)).all(), name
        assert (out.argmin[units] == flat.argmin(2)).all(), name
        assert (out.active[units] == (flat > 0).sum(2)).all(), name
        exact = flat.astype(np.float64)
        deviations = exact - exact[:, :, :1]  # groups of eight are added in float32
        error = 4 * 2.0**-24 * np.abs(deviations).sum(2) + 1e-12
        assert (np.abs(out.sum[units] - exact.sum(2)) <= error).all(), name
        error = 5 * 2.0**-24 * np.square(deviations).sum(2) + 2 * np.abs(exact[:, :, 0]) * error + 1e-12
        assert (np.abs(out.square[units] - np.square(exact).sum(2)) <= error).all(), name
        assert not out.max[:, :2].any(), "other units untouched"


@pytest.mark.parametrize("reduce", REDUCERS)
def test_a_constant_far_from_zero_has_no_variance(reduce: Reducer) -> None:
    values = torch.full((2, 3, 9, 7), 5.9)
    buffers = empty(2, 3)
    reduce(values, slice(0, 3), False, buffers)
    out = buffers.measured(np.ones(3))
    mean = out.sum / 63
    assert (np.abs(out.square / 63 - mean**2) < 1e-13).all()
    assert not out.argmax.any(), "the first position"


@pytest.mark.parametrize("reduce", REDUCERS)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_named(reduce: Reducer, bad: float) -> None:
    values = torch.zeros(2, 3, 4, 4)
    values[1, 2, 3, 3] = bad
    buffers = empty(2, 3)
    reduce(values, slice(0, 3), False, buffers)
    out = buffers.measured(np.ones(3))
    name: Callable[[int], str] = lambda unit: f"layer:{unit}"  # noqa: E731
    with pytest.raises(UsageError, match="layer:2 is not finite on picture 1"):
        check_finite(out, 2, name)
    check_finite(out, 1, name)
