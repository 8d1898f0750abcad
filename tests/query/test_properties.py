"""Every question against plain numpy over the whole matrix of values, with random arguments, ties included.

On a random synthetic store, whose activation maps are kept, and on the demo's, whose 42 photographs have a code for
every value, so that its dense record, read by h5py alone, is the truth. A store of 400 images has coarse codes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from support import synthetic_store

import query
from query.scope import Scope

FEW = settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)


@dataclass(frozen=True)
class Truth:
    """max, mean float32 [N, U] over accepted images; `ids`, `classes` [N]; of units: layer, channel, signed."""

    scope: Scope
    model: str
    max: NDArray[np.float32]
    mean: NDArray[np.float32]
    ids: NDArray[np.int64]
    classes: NDArray[np.int64]
    layer: list[str]
    channel: list[int]
    signed: NDArray[np.bool_]

    @property
    def n(self) -> int:
        return len(self.ids)

    def name(self, unit: int) -> str:
        return f"{self.model}/{self.layer[unit]}:{self.channel[unit]}"

    def named(self, frame: pd.DataFrame, prefix: str = "") -> list[int]:
        """Places of a frame's units."""
        place = {unit: i for i, unit in enumerate(zip(self.layer, self.channel, strict=True))}
        return [place[unit] for unit in zip(frame[f"{prefix}layer"], frame[f"{prefix}channel"], strict=True)]

    def rows(self, frame: pd.DataFrame) -> NDArray[np.int64]:
        return np.searchsorted(self.ids, frame["image_id"].to_numpy())

    @cached_property
    def units(self) -> dict[str, list[int]]:
        """Places of each layer's units."""
        return {name: [u for u, of in enumerate(self.layer) if of == name] for name in dict.fromkeys(self.layer)}

    @cached_property
    def tail(self) -> NDArray[np.float64]:
        """Share of images with at least each value, [N, U]."""
        ordered = np.sort(self.max, axis=0)
        found = [self.n - np.searchsorted(ordered[:, u], self.max[:, u]) for u in range(self.max.shape[1])]
        return np.stack(found, axis=1) / self.n

    def z(self, values: NDArray[Any] | None = None) -> NDArray[np.float64]:
        exact = self.max.astype(np.float64)
        mean, sd = exact.mean(0), np.where(self.max.min(0) < self.max.max(0), exact.std(0), 0)
        values = self.max if values is None else values
        return np.where(sd > 0, (values - mean) / np.where(sd > 0, sd, 1), 0)


@pytest.fixture(scope="module")
def places(demo_store: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Truth]:
    root = tmp_path_factory.mktemp("properties") / "store"
    made = [synthetic_store.build(root, model=m, images=150, seed=s) for m, s in (("toy", 7), ("later", 8))]
    scope = query.open(root)
    found = {m.model: _of_maps(scope, m) for m in made}
    large = synthetic_store.build(tmp_path_factory.mktemp("large") / "store", images=400, seed=9)
    return found | {"large": _of_maps(query.open(large.root), large), "demo": _of_store(demo_store)}


def _of_maps(scope: Scope, made: synthetic_store.Synthetic) -> Truth:
    layers = synthetic_store.LAYERS
    return Truth(
        scope, made.model,
        np.concatenate([made.maxima(layer.name) for layer in layers], 1)[made.ids],
        np.concatenate([made.means(layer.name) for layer in layers], 1)[made.ids],
        made.ids, made.class_index[made.ids],
        [layer.name for layer in layers for _ in range(layer.channels)],
        [c for layer in layers for c in range(layer.channels)],
        np.array([layer.signed for layer in layers for _ in range(layer.channels)]),
    )  # fmt: skip


def _of_store(root: Path) -> Truth:
    """By pandas and h5py alone."""
    (run,) = (root / "runs").iterdir()
    layers = pd.read_parquet(run / "tables" / "layers.parquet").sort_values("layer_index")
    images = pd.read_parquet(next((root / "datasets").iterdir()) / "images.parquet")
    ids = images["image_id"][images["status"] == "accepted"].to_numpy()
    values: dict[str, list[NDArray[np.float32]]] = {"max": [], "mean": []}
    with h5py.File(run / "arrays" / "codes.h5", locking=False) as books:
        for name in layers["layer"]:
            with h5py.File(run / "arrays" / "codes_by_unit" / f"{name}.h5", locking=False) as file:
                for statistic, pieces in values.items():
                    table, codes = books[f"{name}/{statistic}/means"][()], file[statistic][()][:, ids]
                    pieces.append(np.take_along_axis(table, codes.astype(int), 1).T)
    counts = layers["channels"].tolist()
    return Truth(
        query.open(root), run.name.partition("@")[0], np.concatenate(values["max"], 1),
        np.concatenate(values["mean"], 1), ids, images["class_index"].fillna(-1).to_numpy().astype(int)[ids],
        [name for name, count in zip(layers["layer"], counts, strict=True) for _ in range(count)],
        [c for count in counts for c in range(count)], np.repeat(layers["signed"].to_numpy(), counts),
    )  # fmt: skip


exact_stores = pytest.mark.parametrize("store", ["toy", "demo"])
stores = pytest.mark.parametrize("store", ["toy", "demo", "large"])
number = st.integers(0, 10**6)


@stores
@FEW
@given(number, st.integers(1, 60), st.sampled_from(["tail", "max"]), st.booleans())
def test_top_units(places: dict[str, Truth], store: str, image: int, k: int, by: str, one_layer: bool) -> None:
    t = places[store]
    row = image % t.n
    layer = t.layer[image % len(t.layer)] if one_layer else None
    units = [u for u in range(len(t.layer)) if layer in (None, t.layer[u])]
    kept = [u for u in units if t.max[row, u] > 0 or t.signed[u]]
    p, z = t.tail[row], t.z()[row]
    frame = t.scope.top_units(int(t.ids[row]), k, layer, by, model=t.model)
    found = t.named(frame)
    if store == "large":  # the tail is exact, and what lies beyond it stands by codes
        sure = sum(p[u] <= 0.01 for u in kept)
        kept = kept if by == "tail" else []
        k = min(k, sure)
    wanted = sorted(kept, key=lambda u: (p[u], -z[u], u) if by == "tail" else (-z[u], u))[:k]
    if by == "tail" or store == "large":
        assert found[: len(wanted)] == wanted
    else:  # z of equal patterns differ in the last bits
        assert np.allclose(z[found], z[wanted])
    assert np.allclose(frame["z"], z[found], atol=0.4 if store == "large" else 1e-5)
    if store != "large":
        assert frame["tail_p"].tolist() == p[found].tolist()
        assert frame["value"].tolist() == t.max[row, found].tolist()
        assert np.allclose(frame["mean"], t.mean[row, found])


@stores
@FEW
@given(number, st.integers(1, 70), st.booleans(), number)
def test_top_images(places: dict[str, Truth], store: str, unit: int, k: int, of_class: bool, label: int) -> None:
    t = places[store]
    u = unit % len(t.layer)
    known = np.unique(t.classes[t.classes >= 0])
    c = int(known[label % len(known)]) if of_class else None
    rows = [i for i in range(t.n) if (t.max[i, u] > 0 or t.signed[u]) and c in (None, t.classes[i])]
    wanted = sorted(rows, key=lambda i: (-t.max[i, u], -t.mean[i, u], i))[:k]
    frame = t.scope.top_images(t.name(u), k, c)
    found = t.rows(frame)
    assert len(found) == len(wanted)
    stored = 20 if store != "demo" else 42  # ranks that are exact wherever the image is in the unit's tail
    order = sorted(range(t.n), key=lambda i: (-t.max[i, u], -t.mean[i, u], i))[:stored]
    assert [i for i in found if i in order] == [i for i in wanted if i in order]
    if store != "large":
        assert t.max[found, u].tolist() == t.max[wanted, u].tolist() == frame["value"].tolist()
        assert (frame["tail_p"] == t.tail[found, u]).all()
    assert (frame["tail_p"] >= t.tail[found, u]).all()


@exact_stores
@FEW
@given(number, number, st.integers(1, 30), st.booleans())
def test_both(places: dict[str, Truth], store: str, a: int, b: int, k: int, without: bool) -> None:
    t = places[store]
    u, v = a % len(t.layer), b % len(t.layer)
    p, q = t.tail[:, u], t.tail[:, v]
    on_a, on_b = ((t.max[:, x] > 0) | t.signed[x] for x in (u, v))
    if without:
        rows = [i for i in range(t.n) if on_a[i] and (not on_b[i] or q[i] > 0.5)]
        wanted = sorted(rows, key=lambda i: (p[i], -q[i], i))[:k]
    else:
        rows = [i for i in range(t.n) if on_a[i] and on_b[i]]
        wanted = sorted(rows, key=lambda i: (max(p[i], q[i]), p[i] + q[i], i))[:k]
    frame = t.scope.both(t.name(u), t.name(v), without, k)
    assert t.rows(frame).tolist() == wanted
    assert frame["value_a"].tolist() == t.max[wanted, u].tolist()
    assert frame["tail_p_b"].tolist() == q[wanted].tolist()


def _correlations(t: Truth, u: int, units: list[int]) -> dict[int, float]:
    x = t.max.astype(np.float64) - t.max.mean(0, dtype=np.float64)
    varies = t.max.min(0) < t.max.max(0)
    length = np.linalg.norm(x, axis=0)
    return {v: float(x[:, u] @ x[:, v] / (length[u] * length[v])) for v in units if v != u and varies[u] and varies[v]}


@stores
@FEW
@given(number, st.integers(1, 25), st.sampled_from(["own", "other", "*"]), number)
def test_similar_units(places: dict[str, Truth], store: str, unit: int, k: int, where: str, other: int) -> None:
    t = places[store]
    u = unit % len(t.layer)
    layer = {"own": None, "other": t.layer[other % len(t.layer)], "*": "*"}[where]
    units = [v for v in range(len(t.layer)) if layer == "*" or t.layer[v] == (layer or t.layer[u])]
    truth = _correlations(t, u, units)
    frame = t.scope.similar_units(t.name(u), k, layer)
    found = t.named(frame)
    assert u not in found
    assert len(set(found)) == len(found) == min(k, len(truth))
    error = 0.001 if store == "large" else 1e-6
    assert np.abs(frame["correlation"] - [truth[v] for v in found]).max() < error if found else not truth
    best = sorted(truth.values(), reverse=True)[:k]
    assert np.abs(np.array(best) - [truth[v] for v in found]).max() < 2 * error if found else True


@exact_stores
@FEW
@given(number, number, st.integers(1, 30))
def test_similar_images(places: dict[str, Truth], store: str, image: int, unit: int, k: int) -> None:
    t = places[store]
    row, layer = image % t.n, t.layer[unit % len(t.layer)]
    z = t.z()[:, [u for u in range(len(t.layer)) if t.layer[u] == layer]]
    length = np.linalg.norm(z, axis=1)
    cosine = np.divide(z @ z[row], length * length[row], out=np.zeros(t.n), where=length * length[row] > 0)
    others = [i for i in range(t.n) if i != row]
    frame = t.scope.similar_images(int(t.ids[row]), layer, k, model=t.model)
    found = t.rows(frame)
    assert row not in found
    assert np.allclose(frame["similarity"], cosine[found], atol=1e-5)
    assert np.allclose(cosine[found], sorted(cosine[others], reverse=True)[:k], atol=1e-5)


@exact_stores
@FEW
@given(number, number, st.integers(1, 40), st.booleans())
def test_separating_units(places: dict[str, Truth], store: str, a: int, b: int, k: int, of_images: bool) -> None:
    t = places[store]
    known = np.unique(t.classes[t.classes >= 0])
    if of_images:
        random = np.random.default_rng([a, b])
        rows = [random.choice(t.n, size, replace=False) for size in (3, 5)]
        asked: list[Any] = [[int(t.ids[i]) for i in r] for r in rows]
    else:
        asked = [int(known[x % len(known)]) for x in (a, b)]
        rows = [np.flatnonzero(t.classes == c) for c in asked]
    x, y = t.max[rows[0]], t.max[rows[1]]
    wins = (x[:, None] > y[None]).mean((0, 1)) + 0.5 * (x[:, None] == y[None]).mean((0, 1))
    z = t.z(x.mean(0, dtype=np.float64)) - t.z(y.mean(0, dtype=np.float64))
    frame = t.scope.separating_units(*asked, k, model=t.model)
    found = t.named(frame)
    assert np.allclose(frame["auc"], wins[found])
    assert np.allclose(frame["z"], z[found], atol=1e-4)
    assert np.allclose(np.abs(wins[found] - 0.5), np.sort(np.abs(wins - 0.5))[::-1][:k])


@exact_stores
@FEW
@given(number, st.integers(1, 40))
def test_units_for_class(places: dict[str, Truth], store: str, label: int, k: int) -> None:
    t = places[store]
    known = np.unique(t.classes[t.classes >= 0])
    c = int(known[label % len(known)])
    inside = t.classes == c
    labelled = t.classes >= 0
    mean = t.max[inside].astype(np.float64).mean(0)
    x, y = t.max[inside], t.max[labelled & ~inside]
    auc = (x[:, None] > y[None]).mean((0, 1)) + 0.5 * (x[:, None] == y[None]).mean((0, 1))
    frame = t.scope.units_for_class(c, k, model=t.model)
    found = t.named(frame)
    assert np.allclose(frame["mean_max"], mean[found], atol=1e-4)
    assert np.allclose(frame["z"], t.z(mean)[found], atol=1e-3)
    if frame["auc"].notna().any():
        assert np.allclose(frame["auc"], auc[found], atol=1e-6)
        assert np.allclose(auc[found], np.sort(auc)[::-1][:k], atol=1e-6)
    else:  # under ten images: by z
        assert inside.sum() < 10
        assert np.allclose(t.z(mean)[found], np.sort(t.z(mean))[::-1][:k], atol=1e-3)


@exact_stores
@FEW
@given(number)
def test_image_summary_and_rows(places: dict[str, Truth], store: str, image: int) -> None:
    t = places[store]
    row = image % t.n
    p, z = t.tail[row], t.z()[row]
    summary = t.scope.image_summary(int(t.ids[row]), model=t.model)
    whole = t.scope.activations_of(int(t.ids[row]), model=t.model)
    assert t.named(whole) == list(range(len(t.layer)))
    assert whole["value"].tolist() == t.max[row].tolist()
    assert whole["tail_p"].tolist() == p.tolist()
    assert summary["layer"].tolist() == list(dict.fromkeys(t.layer))
    for record in summary.itertuples():
        units = t.units[record.layer]
        counted = [u for u in units if t.max[row, u] > 0 or t.signed[u]]
        assert (record.units, record.active) == (len(units), (t.max[row, units] > 0).sum())
        assert record.rare == sum(p[u] <= 0.01 for u in counted)
        if counted:
            best = min(counted, key=lambda u: (p[u], -z[u], u))
            assert (record.channel, record.tail_p) == (t.channel[best], p[best])
        else:
            assert pd.isna(record.channel)
    unit = image % len(t.layer)
    column = t.scope.activations(t.name(unit))
    assert column["image_id"].tolist() == t.ids.tolist()
    assert column["value"].tolist() == t.max[:, unit].tolist()
    assert column["tail_p"].tolist() == t.tail[:, unit].tolist()


@pytest.mark.parametrize("same", [True, False])
def test_compare(places: dict[str, Truth], same: bool) -> None:
    a, b = places["toy"], places["later"]
    found = a.scope.compare("toy", "later", None) if same else a.scope.compare("toy", "toy", None, layer="head")
    if not same:  # a run beside itself: nothing changed
        assert np.allclose(found["correlation"].dropna(), 1)
        return
    x, y = (t.max.astype(np.float64) for t in (a, b))
    with np.errstate(invalid="ignore"):
        truth = np.array([np.corrcoef(x[:, u], y[:, u])[0, 1] for u in range(x.shape[1])])
    vary = (x.std(0) > 0) & (y.std(0) > 0)
    units = a.named(found)
    assert units == b.named(found, "other_")
    assert sorted(units) == list(range(x.shape[1]))
    assert found["correlation"].isna().tolist() == (~vary[units]).tolist()
    known = int(vary.sum())
    assert np.allclose(found["correlation"][:known], truth[units][:known], atol=1e-6)
    assert (np.diff(found["change"][:known]) <= 1e-9).all()
    assert a.scope.compare("toy", "later", 4).equals(found.head(4))


def test_compare_finds_the_best_match_of_another_architecture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synthetic_store.build(tmp_path / "store", model="one", images=80, seed=1)
    layers = synthetic_store.LAYERS
    monkeypatch.setattr(synthetic_store, "LAYERS", layers[:2])
    synthetic_store.build(tmp_path / "store", model="two", images=80, seed=1)
    monkeypatch.setattr(synthetic_store, "LAYERS", layers)
    with query.open(tmp_path / "store") as scope:
        frame = scope.compare("two", "one", None)
        other = scope.compare("one", "two", None, layer="head")
    assert len(frame) == 11
    assert set(other["other_layer"]) <= {layer.name for layer in layers[:2]}
    live = frame.dropna(subset="correlation")
    # the same seed draws the first layer's maps the same way: each unit finds itself
    first = live[live["layer"] == "stem.relu"]
    assert (first["channel"] == first["other_channel"]).all()
    assert np.allclose(first["correlation"], 1, atol=1e-6)


def test_unit_states_selectivity_and_polysemantic_units(places: dict[str, Truth]) -> None:
    for store in ("toy", "demo"):
        t = places[store]
        units = t.scope.sql(
            "FROM units JOIN layers USING (model, dataset, layer) WHERE model = ? ORDER BY layer_index, channel",
            [t.model],
        ).df()
        assert t.named(units) == list(range(len(t.layer)))
        states = t.scope.unit_states(model=t.model)
        dead = np.where(t.signed, t.max.min(0) == t.max.max(0), t.max.max(0) <= 0)
        on = ~dead & ~t.signed & (units["fraction_active"].to_numpy() >= 0.99)
        clipped = ~dead & ~on & (units["saturated"].fillna(0).to_numpy() >= 0.5)
        for state, truth in (("dead", dead), ("always on", on), ("clipped", clipped)):
            assert t.named(states[states["state"] == state]) == np.flatnonzero(truth).tolist()
        selective = t.scope.class_selectivity(None, model=t.model)
        index = units["selectivity"].to_numpy(dtype=float)
        wanted = sorted(np.flatnonzero(~np.isnan(index)).tolist(), key=lambda u: (-index[u], u))
        assert t.named(selective) == wanted
        frame = t.scope.polysemantic_units(None, model=t.model)
        assert (np.diff(frame["spread"]) <= 0).all()
        few = frame.iloc[:: max(len(frame) // 40, 1)]
        assert np.allclose(few["spread"], [_spread(t, u) for u in t.named(few)])
    assert set(places["toy"].scope.unit_states(model="toy")["state"]) == {"dead"}


def _spread(t: Truth, u: int) -> float:
    """Rao's quadratic entropy of the classes a unit fires for, from its stored highest images."""
    name = t.scope.sql(
        "SELECT image_id FROM top_examples WHERE model = ? AND layer = ? AND channel = ? AND direction = 'highest'",
        [t.model, t.layer[u], t.channel[u]],
    )
    ids = [row[0] for row in name.fetchall()]
    classes = t.classes[np.searchsorted(t.ids, ids)]
    weights = {}
    for c in np.unique(classes[classes >= 0]):
        count, base = int((classes == c).sum()), float((t.classes == c).mean())
        if count >= 2 and count - len(ids) * base > 3 * np.sqrt(len(ids) * base * (1 - base)):
            weights[int(c)] = count / len(ids)
    if not weights:
        return 0.0
    known = np.unique(t.classes[t.classes >= 0])
    last = [v for v in range(len(t.layer)) if t.layer[v] == t.layer[-1]]
    profile = np.stack([t.z(t.max[t.classes == c].astype(np.float64).mean(0).astype(np.float32))[last] for c in known])
    profile = profile - profile.mean(0)
    distance = np.clip(1 - np.corrcoef(profile), 0, 1)
    np.fill_diagonal(distance, 0)
    rows = [int(np.searchsorted(known, c)) for c in weights]
    w = np.array(list(weights.values()))
    return float(w @ distance[np.ix_(rows, rows)] @ w / w.sum())


def test_json_of_every_question_is_stable(places: dict[str, Truth]) -> None:
    """Asked twice, or in another scope, an answer is the same to the last bit."""
    t = places["demo"]
    with query.open(t.scope.path) as other:
        for ask in (
            lambda s: s.top_units(4, 30),
            lambda s: s.similar_units(t.name(3), 5, "*"),
            lambda s: s.separating_units("dalmatian", "jeep"),
            lambda s: s.polysemantic_units(),
            lambda s: s.similar_images(4, t.layer[-1], 5),
        ):
            one, two = (json.loads(ask(s).to_json(double_precision=15)) for s in (t.scope, other))
            assert one == two
