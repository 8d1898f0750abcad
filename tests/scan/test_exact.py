"""The scan against an independent derivation: every unit of every default layer, on the demo's photographs.

The activations are saved node by node from the very network the scan ran (folded, channels last, the same batches), the
statistics are numpy's in float64, top-k is a sort. Then the same against the untouched float32 network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import fx

import query
from pipeline.config import read_config
from pipeline.data.decode import open_image
from pipeline.job import Job
from pipeline.scan.measurer import folded_network
from store import hdf5, layout


@dataclass
class Truth:
    """Per layer: images x channels arrays in image order, and float64 moments over all positions."""

    high: dict[str, np.ndarray]
    place: dict[str, np.ndarray]
    mean: dict[str, np.ndarray]
    low: dict[str, np.ndarray]
    moments: dict[str, tuple[np.ndarray, ...]]  # mean, variance, fraction active, mean square of (value - first value)


class _Saving(fx.Interpreter):
    """Runs a graph node by node; copies each wanted output before anything can overwrite it."""

    def __init__(self, module: fx.GraphModule, wanted: set[str], saved: Callable[[str, torch.Tensor], None]) -> None:
        super().__init__(module)
        self.wanted, self.saved = wanted, saved

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if n.name in self.wanted:
            self.saved(n.name, result.detach().clone())
        return result


def _batches(job: Job) -> Iterator[torch.Tensor]:
    size = job.spec.config.scan.batch_size
    pixels = [
        job.spec.model.preprocess.pixels(open_image(job.dataset.read_image(int(i)))) for i in job.dataset.readable
    ]
    for start in range(0, len(pixels), size):
        batch = np.zeros((size, *pixels[0].shape), np.uint8)
        part = pixels[start : start + size]
        batch[: len(part)] = part
        yield torch.from_numpy(batch).float() / 255


def _truth(job: Job, module: fx.GraphModule, channels_last: bool) -> Truth:
    truth = Truth({}, {}, {}, {}, {})
    layers = {layer.node: layer for layer in job.spec.layers}
    sums: dict[str, list[np.ndarray]] = {}
    pieces: dict[str, list[tuple[np.ndarray, ...]]] = {}
    left = len(job.dataset.readable)
    for x in _batches(job):
        real = min(left, len(x))
        left -= real

        def save(node: str, output: torch.Tensor, real: int = real) -> None:
            name = layers[node].name
            for image in layers[node].to_nchw(output)[:real].flatten(2):
                a = image.numpy().astype(np.float64)  # [C, positions]
                pieces.setdefault(name, []).append((a.max(1), a.argmax(1), a.mean(1), a.min(1)))
                from_first = np.square(a - a[:, :1]).mean(1)  # what the reducer adds up in float32
                facts = np.full(len(a), a.shape[1]), a.mean(1), a.var(1), (a > 0).mean(1), from_first
                sums.setdefault(name, []).append(np.stack(facts))

        inputs = job.spec.model.preprocess.normalize(x)
        if channels_last:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        with torch.inference_mode():
            _Saving(module, set(layers), save).run(inputs)
    for name, found in pieces.items():
        truth.high[name], truth.place[name], truth.mean[name], truth.low[name] = (
            np.stack(column) for column in zip(*found, strict=True)
        )
        count, mean, variance, active, from_first = np.stack(sums[name], axis=1)  # each [images, C]
        weight = count / count.sum(0)
        centre = (weight * mean).sum(0)
        spread = (weight * (variance + np.square(mean - centre))).sum(0)  # no cancellation
        truth.moments[name] = (centre, spread, (weight * active).sum(0), (weight * from_first).sum(0))
    return truth


@pytest.fixture(scope="module")
def job(workplace: Path) -> Job:
    return Job(read_config(workplace / "configs" / "demo.toml"), workplace / "stores" / "demo", progress=False)


@pytest.fixture(scope="module")
def folded(job: Job) -> Truth:
    return _truth(job, folded_network(job.spec.model, job.spec.layers), channels_last=True)


def _table(job: Job, name: str) -> pd.DataFrame:
    return pd.read_parquet(job.store.root / layout.table(job.store.run, name))


def test_every_unit_is_there(job: Job) -> None:
    units = _table(job, "units")
    assert len(job.spec.layers) == 50
    assert len(units) == sum(layer.channels for layer in job.spec.layers) == 22_008
    assert units.groupby("layer", observed=True).size().to_dict() == {x.name: x.channels for x in job.spec.layers}


def test_moments(job: Job, folded: Truth) -> None:
    units = _table(job, "units").groupby("layer", observed=True)
    for layer in job.spec.layers:
        table = units.get_group(layer.name).sort_values("channel")
        mean, variance, active, from_first = folded.moments[layer.name]
        # The reducer adds deviations from a map's first position, eight at a time in float32: at most eight roundings.
        rounding = 8 * 2.0**-24
        assert (np.abs(table["mean"].to_numpy() - mean) <= rounding * np.sqrt(from_first) + 1e-12).all(), layer.name
        assert (np.abs(table["variance"].to_numpy() - variance) <= 4 * rounding * from_first + 1e-12).all(), layer.name
        np.testing.assert_allclose(table["fraction_active"], active, rtol=1e-12)
        high = folded.high[layer.name]
        assert (table["maximum"].to_numpy() == high.max(0).astype(np.float32)).all()
        assert (table["minimum"].to_numpy() == folded.low[layer.name].min(0).astype(np.float32)).all()
        np.testing.assert_allclose(table["max_mean"], high.mean(0), rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(table["max_sd"], high.std(0), rtol=1e-9, atol=1e-9)
        assert (
            table["dead"].to_numpy() == ((high.max(0) == high.min(0)) if layer.signed else (high.max(0) <= 0))
        ).all()


def _first(order: np.ndarray, counts: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (row, channel) of the first `most` rows of each channel, channel by channel.

    order: rows as each channel ranks them, [rows, C]; counts: how many of them count, [C].
    """
    kept = (np.arange(len(order))[:, None] < np.minimum(counts, most)).T
    return order.T[kept], np.nonzero(kept)[0]


def _compare(found: pd.DataFrame, rows: np.ndarray, channels: np.ndarray, job: Job, folded: Truth, name: str) -> None:
    """Values and places are exact. Means are, to float32's rounding of a few terms: images of one value whose means are
    as near may stand in either order."""
    layer = next(layer for layer in job.spec.layers if layer.name == name)
    high, mean = (of[name].astype(np.float32) for of in (folded.high, folded.mean))
    assert found["channel"].tolist() == channels.tolist(), name
    value = found["value"].to_numpy()
    assert (value == high[rows, channels]).all(), name
    images = found["image_id"].to_numpy()
    ours = np.searchsorted(job.dataset.readable, images)
    assert (job.dataset.readable[ours] == images).all(), name

    def near(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        a, b = a.astype(np.float64), b.astype(np.float64)
        return np.abs(a - b) <= np.maximum(1e-6 * np.abs(b), 1e-7 * np.maximum(np.abs(value), 1))

    assert near(found["mean"].to_numpy(), mean[ours, channels]).all(), name
    assert ((ours == rows) | near(mean[ours, channels], mean[rows, channels])).all(), name
    place = folded.place[name][ours, channels]
    assert (found["y"].to_numpy() == place // layer.width).all(), name
    assert (found["x"].to_numpy() == place % layer.width).all(), name


def test_top_examples_are_a_sort(job: Job, folded: Truth) -> None:
    examples = _table(job, "top_examples").sort_values(["channel", "rank"])
    groups = examples.groupby(["layer", "direction"], observed=True)
    ids, scan = job.dataset.readable, job.spec.config.scan
    compared = 0
    for layer in job.spec.layers:
        high, mean, low = (of[layer.name].astype(np.float32) for of in (folded.high, folded.mean, folded.low))
        order = np.lexsort((np.broadcast_to(ids[:, None], high.shape), -mean, -high), axis=0)
        counts = np.full(layer.channels, len(ids)) if layer.signed else (high > 0).sum(0)
        rows, channels = _first(order, counts, scan.topk)
        found = groups.get_group((layer.name, "highest"))
        assert not found.duplicated(["channel", "image_id"]).any(), layer.name
        _compare(found, rows, channels, job, folded, layer.name)
        compared += len(rows)
        if layer.signed:
            order = np.lexsort((np.broadcast_to(ids[:, None], low.shape), low), axis=0)
            rows, channels = _first(order, np.full(layer.channels, len(ids)), scan.lowest)
            lowest = groups.get_group((layer.name, "lowest"))
            assert lowest["channel"].tolist() == channels.tolist(), layer.name
            assert lowest["image_id"].tolist() == ids[rows].tolist(), layer.name
            assert (lowest["value"].to_numpy() == low[rows, channels]).all(), layer.name
    assert compared > 500_000


def test_tail_probabilities_are_exact(job: Job, folded: Truth) -> None:
    n = len(job.dataset.readable)
    for layer in job.spec.layers:
        tail = pd.read_parquet(job.store.root / layout.tail_by_unit(job.store.run, layer.name))
        high = folded.high[layer.name].astype(np.float32)
        rows = np.searchsorted(job.dataset.readable, tail["image_id"].to_numpy())
        channel = tail["channel"].to_numpy()
        assert (tail["value"].to_numpy() == high[rows, channel]).all()
        expected = (high[:, channel] >= tail["value"].to_numpy()).sum(0) / n
        assert (tail["tail_p"].to_numpy() == expected).all()
        with hdf5.reading(job.store.root / layout.array(job.store.run, "codes")) as file:
            edges, counts = (hdf5.dataset(file, f"{layer.name}/max/{key}")[()] for key in ("edges", "counts"))
        reaching = np.cumsum(counts[:, ::-1], 1)[:, ::-1]
        for c in range(0, layer.channels, 7):
            assert (reaching[c] == (high[:, c, None] >= edges[c]).sum(0)).all(), "exact at code edges"


def test_against_the_untouched_network(job: Job) -> None:
    plain = _truth(job, job.spec.model.graph.module, channels_last=False)
    units = _table(job, "units").groupby("layer", observed=True)
    examples = _table(job, "top_examples")
    highest = examples[examples["direction"] == "highest"].groupby("layer", observed=True)
    compared = 0
    for layer in job.spec.layers:
        mean, variance, *_ = plain.moments[layer.name]
        table = units.get_group(layer.name).sort_values("channel")
        sd = np.sqrt(np.maximum(variance, 0))
        assert (np.abs(table["mean"].to_numpy() - mean) <= 1e-5 * sd + 1e-9).all(), layer.name
        assert (np.abs(table["variance"].to_numpy() - variance) <= 1e-4 * variance + 1e-9).all(), layer.name
        ours = highest.get_group(layer.name)
        high, channel = plain.high[layer.name], ours["channel"].to_numpy()
        value = ours["value"].to_numpy()
        theirs = high[np.searchsorted(job.dataset.readable, ours["image_id"]), channel]
        close = 1e-4 * np.maximum(np.abs(value), 1)
        assert (np.abs(value - theirs) <= close).all(), layer.name
        # at each rank the sort of the untouched network has this image, or one whose value is within that of it
        rank = np.sort(high, axis=0)[::-1][ours["rank"].to_numpy() - 1, channel]
        assert (np.abs(theirs - rank) <= close).all(), layer.name
        compared += len(ours)
    assert compared > 400_000


def test_a_copy_of_a_stored_picture_is_placed_as_itself(job: Job, tmp_path: Path) -> None:
    """A picture never scanned: (1 + images that reach it) / (N + 1), with the stored row's own values."""
    scope = query.open(job.store.root)
    n, image_id = len(job.dataset.readable), int(job.dataset.readable[5])
    file = tmp_path / "copy.jpg"
    file.write_bytes(job.dataset.read_image(image_id))
    stored = scope.sql("SELECT layer, channel, value, tail_p, y, x FROM tail WHERE image_id = $1", [image_id]).df()
    live = scope.top_units(str(file), k=22_008).merge(stored, on=["layer", "channel"], suffixes=("", "_stored"))
    assert len(live) == len(stored) > 5_000
    assert (live["value"] == live["value_stored"]).all()
    assert (live["y"] == live["y_stored"]).all()
    top = live["tail_p_stored"] * n
    assert ((live["tail_p"] * (n + 1)).round() == 1 + top.round()).all()
