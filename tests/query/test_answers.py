"""Answers against brute force over the raw activation maps of a synthetic store."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from support import synthetic_store
from support.synthetic_store import LAYERS, Synthetic, SyntheticLayer

import query
from query.scope import Scope
from store import codes, schema
from store.errors import UsageError

UNITS = [(layer, channel) for layer in LAYERS for channel in range(layer.channels)]
BY_NAME = {layer.name: layer for layer in LAYERS}
each_unit = pytest.mark.parametrize(("layer", "channel"), UNITS, ids=[f"{u.name}:{c}" for u, c in UNITS])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Synthetic:
    return synthetic_store.build(tmp_path_factory.mktemp("small") / "store")


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Synthetic:
    """Enough images that tail_p <= 0.01 is a matter of several; a small calibration sample makes codes coarse."""
    return synthetic_store.build(tmp_path_factory.mktemp("large") / "store", images=400, seed=3, sample=10)


@pytest.fixture(scope="module")
def scope(made: Synthetic) -> Iterator[Scope]:
    with query.open(made.root) as opened:
        yield opened


def truth(made: Synthetic) -> pd.DataFrame:
    """One row an accepted image and unit: everything exact, by plain counting."""
    rows = []
    for index, layer in enumerate(LAYERS):
        value, mean = made.maxima(layer.name)[made.ids], made.means(layer.name)[made.ids]
        flat = made.maps[layer.name][made.ids].reshape(*value.shape, -1)
        sd = value.astype(np.float64).std(0)
        z = np.where(sd > 0, (value - value.astype(np.float64).mean(0)) / np.where(sd > 0, sd, 1), 0)
        p = (value[None, :, :] >= value[:, None, :]).mean(1)
        for channel in range(layer.channels):
            rows.append(
                pd.DataFrame(
                    {
                        "image_id": made.ids, "index": index, "layer": layer.name, "channel": channel,
                        "value": value[:, channel], "mean": mean[:, channel], "tail_p": p[:, channel],
                        "z": z[:, channel], "place": flat[:, channel].argmax(1), "signed": layer.signed,
                    }
                )
            )  # fmt: skip
    return pd.concat(rows, ignore_index=True)


def ordered_units(rows: pd.DataFrame) -> list[tuple[str, int]]:
    kept = rows[(rows["value"] > 0) | rows["signed"]]
    keys = zip(kept["tail_p"], -kept["z"], kept["index"], kept["channel"], kept["layer"], strict=True)
    return [(name, channel) for _, _, _, channel, name in sorted(keys)]


def named(frame: pd.DataFrame) -> list[tuple[str, int]]:
    return list(zip(frame["layer"], frame["channel"], strict=True))


def places(frame: pd.DataFrame) -> NDArray[np.int64]:
    side = frame["layer"].map(lambda name: BY_NAME[name].side).to_numpy()
    return np.asarray(frame["y"].to_numpy() * side + frame["x"].to_numpy(), np.int64)


def in_tail(made: Synthetic, layer: SyntheticLayer, channel: int) -> set[int]:
    """The first 20 images and those with tail_p <= 0.01: where every answer must be exact."""
    value, mean = made.maxima(layer.name)[:, channel], made.means(layer.name)[:, channel]
    ids = sorted((i for i in made.ids if layer.signed or value[i] > 0), key=lambda i: (-value[i], -mean[i], i))
    sure = [i for i in ids if (value[made.ids] >= value[i]).mean() <= 0.01]
    return set(ids[:20]) | set(sure)


def test_top_units_columns(scope: Scope) -> None:
    frame = scope.top_units(0, 5)
    assert list(frame.columns) == ["model", "layer", "channel", "value", "mean", "tail_p", "z", "rank", "y", "x", "n"]
    assert frame["rank"].tolist() == [1, 2, 3, 4, 5]
    assert set(frame["n"]) == {58}


def check_top_units(made: Synthetic, scope: Scope, image_ids: list[int], coarse: float) -> None:
    """All units in order; exact where the tail reaches, never better than the truth elsewhere; no zeros."""
    everything = truth(made)
    tails = {(layer.name, channel): in_tail(made, layer, channel) for layer, channel in UNITS}
    for image_id, rows in everything[everything["image_id"].isin(image_ids)].groupby("image_id"):
        frame = scope.top_units(int(image_id), 100)
        assert sorted(named(frame)) == sorted(ordered_units(rows))
        merged = frame.merge(rows, on=["layer", "channel"], suffixes=("", "_true"))
        assert len(merged) == len(frame)
        sure = merged[np.array([image_id in tails[unit] for unit in named(merged)])]
        assert (sure["value"] == sure["value_true"]).all()
        assert (sure["tail_p"] == sure["tail_p_true"]).all()
        assert (places(sure) == sure["place"]).all()
        assert np.allclose(sure["z"], sure["z_true"])
        assert (merged["tail_p"] >= merged["tail_p_true"]).all()
        assert np.abs(merged["tail_p"] - merged["tail_p_true"]).max() < 0.1 * coarse
        assert np.abs(merged["value"] - merged["value_true"]).max() < coarse
        index = frame["layer"].map(list(BY_NAME).index)
        keys = list(zip(frame["tail_p"], -frame["z"], index, frame["channel"], strict=True))
        assert keys == sorted(keys)
        for k in (3, 6):
            assert scope.top_units(int(image_id), k).equals(frame.head(k))


def test_top_units_of_every_image(made: Synthetic, scope: Scope) -> None:
    check_top_units(made, scope, made.ids.tolist(), 1)


def test_top_units_among_many_images(large: Synthetic) -> None:
    """Here several values share a code, and only the tail tells them apart."""
    with query.open(large.root) as scope:
        check_top_units(large, scope, large.ids[::5].tolist(), 2)


def test_tail_p_of_stored_examples(large: Synthetic) -> None:
    """Exact beyond the tail too, where the stored examples decide it; never too small."""
    with query.open(large.root) as scope:
        for layer, channel in UNITS:
            value = large.maxima(layer.name)[:, channel]
            frame = scope.top_images(f"{layer.name}:{channel}", 100)
            true = np.array([(value[large.ids] >= value[i]).mean() for i in frame["image_id"]])
            assert (frame["tail_p"] >= true).all()
            decided = (np.arange(len(frame)) < 20) | (frame["value"] > frame["value"].iloc[: large.kept].min())
            assert (frame["tail_p"] == true)[decided].all()


def test_ties_across_the_last_stored_example(tmp_path: Path) -> None:
    """Beyond `top_examples` means are only decoded: no image there may overtake a stored one of the same value."""
    made = synthetic_store.build(tmp_path / "store", images=200, seed=5, kept=4, sample=20)
    ties = 0
    with query.open(made.root) as scope:
        for layer, channel in UNITS:
            value, mean = made.maxima(layer.name)[:, channel], made.means(layer.name)[:, channel]
            ids = [i for i in made.ids if layer.signed or value[i] > 0]
            brute = sorted(ids, key=lambda i: (-value[i], -mean[i], i))
            frame = scope.top_images(f"{layer.name}:{channel}", 20)
            assert frame["image_id"].tolist()[:4] == brute[:4]
            assert frame["value"].tolist() == value[brute[:20]].tolist()
            ties += len(brute) > 4 and value[brute[3]] == value[brute[4]]
    assert ties > 3


def test_sure_tail_is_exact_at_every_rank(large: Synthetic) -> None:
    """Where k units have tail_p <= 0.01 the answer is the brute-force one, ties of tail_p decided by z."""
    everything = truth(large)
    checked = 0
    with query.open(large.root) as scope:
        for image_id, rows in everything.groupby("image_id"):
            sure = int(((rows["tail_p"] <= 0.01) & ((rows["value"] > 0) | rows["signed"])).sum())
            for k in {1, sure} - {0}:
                if k > sure:
                    continue
                frame = scope.top_units(int(image_id), k)
                assert named(frame) == ordered_units(rows)[:k]
                checked += 1
        tied = scope.top_units(7, 5)
    assert checked > 20
    assert tied["tail_p"].nunique() < len(tied), "the image that excites everything must have units tied in tail_p"


@pytest.mark.parametrize("by", ["max", "mean"])
def test_top_units_by_z(made: Synthetic, scope: Scope, by: str) -> None:
    everything = truth(made)
    for image_id in (0, 7, 30):
        frame = scope.top_units(image_id, 100, by=by)
        assert frame["z"].is_monotonic_decreasing
        rows = everything[everything["image_id"] == image_id]
        column = "value" if by == "max" else "mean"
        spread = everything.groupby(["layer", "channel"])[column].agg(["mean", lambda v: v.astype(float).std(ddof=0)])
        merged = frame.merge(rows, on=["layer", "channel"], suffixes=("", "_true"))
        for row in merged.itertuples():
            mean, sd = spread.loc[(row.layer, row.channel)]
            true = (getattr(row, f"{column}_true") - mean) / sd if sd > 0 else 0
            assert abs(row.z - true) < 0.35, f"{row.layer}:{row.channel}"


def test_layer_globs_choose_units(scope: Scope) -> None:
    assert set(scope.top_units(7, 50, layer="*.relu")["layer"]) == {"stem.relu"}
    assert set(scope.top_units(7, 50, layer=["head", "block.*"])["layer"]) == {"head", "block.0.add"}
    with pytest.raises(UsageError, match=r"layer 'stem\.rel' is unknown: did you mean stem\.relu\?"):
        scope.top_units(7, layer="stem.rel")


@each_unit
def test_top_images(made: Synthetic, scope: Scope, layer: SyntheticLayer, channel: int) -> None:
    """Brute-force order with ties as far as examples are stored; to any depth by code, with nothing left out."""
    unit = f"{layer.name}:{channel}"
    value, mean = made.maxima(layer.name)[:, channel], made.means(layer.name)[:, channel]
    brute = sorted((i for i in made.ids if layer.signed or value[i] > 0), key=lambda i: (-value[i], -mean[i], i))
    kept = made.kept
    frame = scope.top_images(unit, kept)
    assert frame["image_id"].tolist() == brute[:kept]
    assert frame["value"].tolist() == value[brute[:kept]].tolist()
    assert frame["mean"].tolist() == mean[brute[:kept]].tolist()
    assert frame["path"].tolist() == [made.paths[i] for i in brute[:kept]]
    flat = made.maps[layer.name][:, channel].reshape(len(value), -1)
    assert (frame["y"] * layer.side + frame["x"]).tolist() == flat[brute[:kept]].argmax(1).tolist()
    deep = scope.top_images(unit, 1000)
    assert sorted(deep["image_id"]) == sorted(brute)
    assert deep.head(len(frame)).equals(frame)
    reached = (value[made.ids][None] >= value[deep["image_id"]][:, None]).mean(1)
    assert (deep["tail_p"].head(20) == reached[:20]).all()
    assert (deep["tail_p"] >= reached).all()
    coded = codes.encode(value[made.ids][:, None], codes.edges(value[made.ids][:, None], layer.signed))[:, 0]
    code_of = dict(zip(made.ids.tolist(), coded.tolist(), strict=True))
    order = [code_of[i] for i in deep["image_id"]]
    assert order == sorted(order, reverse=True)


@each_unit
def test_top_images_by_mean(made: Synthetic, scope: Scope, layer: SyntheticLayer, channel: int) -> None:
    mean = made.means(layer.name)[made.ids, channel]
    coded = codes.encode(mean[:, None], codes.edges(mean[:, None], layer.signed, codes.MEAN))[:, 0]
    code_of = dict(zip(made.ids.tolist(), coded.tolist(), strict=True))
    frame = scope.top_images(f"{layer.name}:{channel}", 1000, by="mean")
    assert sorted(frame["image_id"]) == sorted(made.ids[(mean > 0) | layer.signed])
    order = [code_of[i] for i in frame["image_id"]]
    assert order == sorted(order, reverse=True)
    assert scope.top_images(f"{layer.name}:{channel}", 4, by="mean").equals(frame.head(4))


@each_unit
def test_top_images_within_a_class(made: Synthetic, scope: Scope, layer: SyntheticLayer, channel: int) -> None:
    value, mean = made.maxima(layer.name)[:, channel], made.means(layer.name)[:, channel]
    inside = [i for i in made.ids if made.class_index[i] == 437 and (layer.signed or value[i] > 0)]
    brute = sorted(inside, key=lambda i: (-value[i], -mean[i], i))
    frame = scope.top_images(f"{layer.name}:{channel}", 100, label="Lighthouse")
    assert sorted(frame["image_id"]) == sorted(brute)
    tail = in_tail(made, layer, channel)
    sure = [i for i in brute if i in tail]
    assert frame["image_id"].tolist()[: len(sure)] == sure
    for name in (437, "437", "n02814860"):
        assert scope.top_images(f"{layer.name}:{channel}", 100, label=name).equals(frame)


@each_unit
def test_lowest_images(made: Synthetic, scope: Scope, layer: SyntheticLayer, channel: int) -> None:
    unit = f"{layer.name}:{channel}"
    if not layer.signed:
        with pytest.raises(UsageError, match="never negative"):
            scope.top_images(unit, lowest=True)
        return
    low = made.maps[layer.name][:, channel].min((1, 2))
    brute = sorted(made.ids, key=lambda i: (low[i], i))[: made.kept]
    frame = scope.top_images(unit, 100, lowest=True)
    assert frame["image_id"].tolist() == brute
    assert frame["value"].tolist() == low[brute].tolist()
    below = np.array([(low[made.ids] <= low[i]).mean() for i in brute])
    known = frame["tail_p"].notna().to_numpy()
    assert (frame["tail_p"][known] == below[known]).all()
    assert (low[brute][~known] == low[brute[-1]]).all()
    of_class = scope.top_images(unit, 100, lowest=True, label=437)
    assert of_class["image_id"].tolist() == [i for i in brute if made.class_index[i] == 437]


@each_unit
def test_activations_and_both_orientations_agree(
    made: Synthetic, scope: Scope, layer: SyntheticLayer, channel: int
) -> None:
    value = made.maxima(layer.name)[:, channel]
    frame = scope.activations(f"{layer.name}:{channel}")
    assert frame["image_id"].tolist() == made.ids.tolist()
    exact = frame[frame["exact"]]
    assert (exact["value"] == value[exact["image_id"]]).all()
    assert in_tail(made, layer, channel) <= set(exact["image_id"])
    row = scope.activations_of(30).set_index(["layer", "channel"]).loc[(layer.name, channel)]
    here = frame[frame["image_id"] == 30].iloc[0]
    assert row["tail_p"] == here["tail_p"]
    assert row["mean"] == pytest.approx(here["mean"], abs=0.3)


def test_activations_of_has_every_unit_in_order(scope: Scope) -> None:
    assert named(scope.activations_of(4)) == [(layer.name, channel) for layer, channel in UNITS]
    assert named(scope.activations_of(4, layer="head")) == [("head", c) for c in range(7)]


def correlation(made: Synthetic, a: tuple[str, int], b: tuple[str, int]) -> float:
    one, other = (made.maxima(name)[made.ids, channel].astype(np.float64) for name, channel in (a, b))
    return float(np.corrcoef(one, other)[0, 1])


def test_similar_units_in_the_own_layer(made: Synthetic, scope: Scope) -> None:
    live = [c for c in range(6) if c not in (0, 3)]
    brute = sorted(live, key=lambda c: -correlation(made, ("stem.relu", 0), ("stem.relu", c)))
    stored, deeper = scope.similar_units("stem.relu:0", 3), scope.similar_units("stem.relu:0", 9)
    assert stored["channel"].tolist() == brute[:3]
    assert deeper["channel"].tolist() == brute
    for frame in (stored, deeper):
        true = [correlation(made, ("stem.relu", 0), unit) for unit in named(frame)]
        assert np.abs(frame["correlation"] - true).max() < 0.01
    assert len(scope.similar_units("stem.relu:3")) == 0, "a dead unit is like nothing"


def test_inputs_and_outputs(made: Synthetic, scope: Scope) -> None:
    layers = {layer.name: layer.channels for layer in synthetic_store.LAYERS}
    for name, ask in (("block.0.add:2", scope.inputs), ("block.0.add:2", scope.outputs), ("head:6", scope.inputs)):
        layer, channel = name.split(":")
        found = []
        for other, channels in layers.items():
            for c in range(channels):
                ends = (other, c, layer, int(channel)) if ask == scope.inputs else (layer, int(channel), other, c)
                strength = synthetic_store.connection(*ends)
                if strength:
                    found.append((-abs(strength), other, c, strength))
        frame = ask(name, 4)
        wanted = [(other, c, strength) for _, other, c, strength in sorted(found)][:4]
        assert list(zip(frame["layer"], frame["channel"], frame["strength"], strict=True)) == wanted
        assert frame["rank"].tolist() == [1, 2, 3, 4]
        assert (frame["weight"] == frame["strength"] / 2).all()
    assert len(scope.inputs("stem.relu:0")) == len(scope.outputs("head:0")) == 0


def test_similar_units_in_another_layer(made: Synthetic, scope: Scope) -> None:
    frame = scope.similar_units("stem.relu:1", 20, layer="head")
    live = [c for c in range(7) if c != 2]
    assert sorted(frame["channel"]) == live
    true = [correlation(made, ("stem.relu", 1), unit) for unit in named(frame)]
    assert np.abs(frame["correlation"] - true).max() < 0.02
    assert frame["correlation"].is_monotonic_decreasing


def test_similar_images(made: Synthetic, scope: Scope) -> None:
    top = made.maxima("head")[made.ids].astype(np.float64)
    live = top.std(0) > 0
    z = (top[:, live] - top[:, live].mean(0)) / top[:, live].std(0)
    asked = z[made.ids.tolist().index(7)]
    true = dict(zip(made.ids.tolist(), z @ asked / np.linalg.norm(z, axis=1) / np.linalg.norm(asked), strict=True))
    frame = scope.similar_images(7, "head", 100)
    assert sorted(frame["image_id"]) == [i for i in made.ids if i != 7]
    assert frame["similarity"].is_monotonic_decreasing
    assert np.abs(frame["similarity"] - [true[i] for i in frame["image_id"]]).max() < 0.1


def test_both(made: Synthetic, scope: Scope) -> None:
    a, b = made.maxima("stem.relu")[:, 1], made.maxima("head")[:, 1]
    p, q = ({i: (v[made.ids] >= v[i]).mean() for i in made.ids} for v in (a, b))
    frame = scope.both("stem.relu:1", "head:1", k=100)
    assert sorted(frame["image_id"]) == [i for i in made.ids if a[i] > 0]
    sure = in_tail(made, BY_NAME["stem.relu"], 1) & in_tail(made, BY_NAME["head"], 1)
    brute = sorted(sure, key=lambda i: (max(p[i], q[i]), p[i] + q[i], i))
    assert frame["image_id"].tolist()[:3] == brute[:3]
    assert frame[["tail_p_a", "tail_p_b"]].max(axis=1).is_monotonic_increasing
    without = scope.both("head:1", "stem.relu:1", without=True, k=100)
    assert set(without["image_id"]) <= {i for i in made.ids if a[i] == 0 or p[i] > 0.5 - 0.08}
    assert {i for i in made.ids if a[i] == 0 or p[i] > 0.5} <= set(without["image_id"])
    assert without["tail_p_a"].is_monotonic_increasing


@pytest.mark.parametrize("without", [True, False])
def test_both_lists_only_images_that_both_runs_accepted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, without: bool
) -> None:
    """Image 7 excites everything: it is in every unit's tail. The scan of `later` rejects it."""
    first = synthetic_store.build(tmp_path / "store", images=150, seed=7)
    describe = synthetic_store._description

    def described(made: Synthetic, names: dict[str, str]) -> dict[schema.Table, dict[str, Any]]:
        rejected = names | {"image_id": [7, 11], "reason": ["unreadable", "unreadable"]}
        return describe(made, names) | {schema.REJECTED: rejected}

    monkeypatch.setattr(synthetic_store, "REJECTED", synthetic_store.REJECTED | {7: "unreadable"})
    monkeypatch.setattr(synthetic_store, "_description", described)
    later = synthetic_store.build(tmp_path / "store", model="later", images=150, seed=8)
    assert set(first.ids) - set(later.ids) == {7}
    with query.open(tmp_path / "store") as scope:
        for layer, channel in UNITS:
            unit = f"{layer.name}:{channel}"
            assert 7 not in scope.activations(f"later/{unit}")["image_id"].tolist()
            for k in (1, 2, 200):
                for a, b in (("toy", "later"), ("later", "toy")):
                    frame = scope.both(f"{a}/{unit}", f"{b}/head:1", without, k)
                    assert set(frame["image_id"]) <= set(later.ids)


def test_units_for_class(made: Synthetic, scope: Scope) -> None:
    frame = scope.units_for_class("lighthouse", k=None)
    assert len(frame) == len(UNITS)
    inside = made.class_index[made.ids] == 437
    for row in frame.itertuples():
        value = made.maxima(row.layer)[made.ids, row.channel]
        pairs = value[inside][:, None] - value[~inside][None]
        assert row.auc == pytest.approx(((pairs > 0) + 0.5 * (pairs == 0)).mean(), abs=1e-6)
    keys = list(zip(-frame["auc"], -frame["z"], strict=True))
    assert keys == sorted(keys)
    assert set(frame.head(3)["channel"]) == {1}, "channel 1 was made to like lighthouses"
    assert len(scope.units_for_class(437, k=4, layer="head")) == 4


def test_visualization(scope: Scope) -> None:
    for direction in ("positive", "negative"):
        found = scope.visualization("block.0.add:2", direction=direction)
        assert np.array_equal(found, synthetic_store.visualization(2, direction == "negative"))
    with pytest.raises(UsageError, match="it has channel positive 0, channel negative 0"):
        scope.visualization("block.0.add:2", repeat=3)


def test_rejected_images_are_in_no_answer(scope: Scope) -> None:
    rejected = set(synthetic_store.REJECTED)
    for unit in ("stem.relu:0", "head:4"):
        assert not rejected & set(scope.top_images(unit, 1000)["image_id"])
        assert not rejected & set(scope.activations(unit)["image_id"])
    assert not rejected & set(scope.similar_images(7, "head", 100)["image_id"])


def test_every_parquet_file_reads_with_plain_pandas(made: Synthetic) -> None:
    files = sorted(Path(made.root).rglob("*.parquet"))
    assert len(files) > 15
    for file in files:
        frame = pd.read_parquet(file)
        assert all(kind.kind in "biufOM" or str(kind) in ("category", "str", "string") for kind in frame.dtypes)
