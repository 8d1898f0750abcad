"""What a person may call a unit, an image, a class and a run; and the one line that answers a wrong name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import synthetic_store

import query
from query.scope import Scope
from store.errors import UsageError


@pytest.fixture(scope="module")
def scope(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scope]:
    made = synthetic_store.build(tmp_path_factory.mktemp("names") / "store")
    with query.open(made.root) as opened:
        yield opened


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scope]:
    """toy and other over shapes, toy over forms."""
    root = tmp_path_factory.mktemp("several") / "store"
    synthetic_store.build(root)
    synthetic_store.build(root, model="other", seed=1)
    synthetic_store.build(root, dataset="forms", seed=2, images=50)
    with query.open(root) as opened:
        yield opened


def refusal(ask: Any) -> str:
    with pytest.raises(UsageError) as caught:
        ask()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "image", [13, "13", "n02012849/picture_0013.png", "picture_0013.png", Path("picture_0013.png")]
)
def test_every_way_to_name_an_image(scope: Scope, image: Any) -> None:
    assert scope.top_units(image, 5).equals(scope.top_units(13, 5))


def test_wrong_images(scope: Scope, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert refusal(lambda: scope.top_units(60)) == "image 60: dataset shapes has image_ids 0 to 59"
    assert refusal(lambda: scope.top_units("11")) == "image 11 was rejected (image file is truncated)"
    assert "rejected" in refusal(lambda: scope.top_units("picture_0005.png"))
    both = "n02012849/picture_0001.png, n02814860/picture_0001.png"
    assert refusal(lambda: scope.top_units("picture_0001.png")).endswith(f"is the end of several paths: {both}")
    assert "an image_id is 0 or more" in refusal(lambda: scope.top_units(-1))
    assert "did you mean n02012849/picture_0013.png" in refusal(lambda: scope.top_units("pictur_0013.png"))
    assert "no file on disk" in refusal(lambda: scope.top_units("icture_0013.png"))
    (tmp_path / "icture_0013.png").write_bytes(b"no picture")
    assert "model toy comes from python:toy:make, which runs code" in refusal(
        lambda: scope.top_units("icture_0013.png")
    )


def test_wrong_units(scope: Scope) -> None:
    assert "expected LAYER:CHANNEL or MODEL/LAYER:CHANNEL, e.g. stem.relu:0" in refusal(
        lambda: scope.top_images("head")
    )
    assert refusal(lambda: scope.top_images("head:7")) == "unit head:7: layer head has channels 0 to 6"
    assert "layer 'stem.rel' is unknown: did you mean stem.relu?" in refusal(lambda: scope.top_images("stem.rel:1"))
    assert "model 'tay' is unknown: did you mean toy?" in refusal(lambda: scope.top_images("tay/head:1"))
    assert "layer 'hea' is unknown: did you mean head?" in refusal(lambda: scope.similar_images(7, "hea"))
    assert scope.top_images("toy/head:1").equals(scope.top_images("head:1"))


def test_wrong_classes(scope: Scope) -> None:
    assert "did you mean lighthouse?" in refusal(lambda: scope.units_for_class("lighthose"))
    assert "134 (n02012849), 517 (n03126707)" in refusal(lambda: scope.units_for_class("crane"))
    assert "'3' is unknown" in refusal(lambda: scope.top_images("head:1", label=3))


def test_wrong_settings(scope: Scope) -> None:
    assert "expected one of tail, max, mean" in refusal(lambda: scope.top_units(7, by="median"))
    assert "expected one of max, mean" in refusal(lambda: scope.top_images("head:1", by="tail"))
    assert "k=0" in refusal(lambda: scope.top_images("head:1", k=0))
    assert "leave `by` out" in refusal(lambda: scope.top_images("head:1", by="mean", lowest=True))


def test_an_ambiguous_question_lists_the_choices(several: Scope) -> None:
    for ask in (
        lambda: several.top_units(7),
        lambda: several.top_images("head:1"),
        lambda: several.units_for_class("lighthouse"),
        lambda: several.sql("FROM top_units(7, 3)"),
        lambda: several.top_units(7, dataset="shapes"),
        lambda: several.top_units("picture_0007.png", dataset="shapes"),
    ):
        said = refusal(ask)
        assert "other@shapes, toy@" in said
        assert "--model, --dataset" in said


def test_choosing_among_runs(several: Scope) -> None:
    chosen = several.top_units(7, 5, model="toy", dataset="shapes")
    assert set(chosen["model"]) == {"toy"}
    assert set(chosen["n"]) == {58}
    assert set(several.top_units(7, 5, dataset="forms")["n"]) == {48}
    assert set(several.top_units("picture_0007.png", 5, model="other")["model"]) == {"other"}
    assert several.top_images("other/head:1").equals(several.top_images("head:1", model="other"))
    assert (
        several.sql("FROM top_units(7, 5, model := 'toy', dataset := 'shapes')")
        .df()["channel"]
        .equals(chosen["channel"].astype("int32"))
    )
    assert "model 'tox' is unknown: did you mean toy?" in refusal(lambda: several.top_units(7, model="tox"))
    assert "run 'other@forms' is unknown" in refusal(lambda: several.top_units(7, model="other", dataset="forms"))


def test_an_image_only_one_dataset_has_is_not_ambiguous(several: Scope) -> None:
    found = several.top_units("n03126707/picture_0059.png", 3, model="toy")
    assert found.equals(several.top_units(59, 3, model="toy", dataset="shapes"))


def test_views_of_several_runs(several: Scope) -> None:
    assert several.sql("SELECT count(*), count(DISTINCT model) FROM models").fetchone() == (2, 2)
    assert several.sql("SELECT count(*) FROM units").fetchone() == (3 * 18,)
    counts = several.sql("SELECT dataset, count(*) FROM images GROUP BY 1 ORDER BY 1").fetchall()
    assert counts == [("forms", 50), ("shapes", 60)]


def test_both_needs_one_dataset(several: Scope) -> None:
    frame = several.both("toy/head:1", "other/head:1", k=5, dataset="shapes")
    assert len(frame) == 5
    several_datasets = refusal(lambda: several.both("toy/head:1", "other/head:1"))
    assert "ambiguous" in several_datasets
