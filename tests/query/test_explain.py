"""`unitscope explain` and Scope.explain, on the demo store and its network."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import query
from pipeline import explain as pipeline_explain
from query.commands.explain import explain as command
from query.explanation import terms
from query.explanation.explained import Explained, output_class
from query.scope import Scope
from store.errors import UsageError

DALMATIAN = "foolbox/data/imagenet_16_251.jpg"
LAYER = "blocks.6.0.bn3"  # of both signs, and near the end


@pytest.fixture(scope="module")
def scope(demo_store: Path) -> Iterator[Scope]:
    with query.open(demo_store) as opened:
        yield opened


@pytest.fixture(scope="module")
def why(scope: Scope) -> Explained:
    return scope.explain(DALMATIAN, layer=LAYER)


def test_a_dalmatian(scope: Scope, why: Explained) -> None:
    of_it = f"WHERE path = '{DALMATIAN}' ORDER BY rank"
    stored = scope.sql(f"SELECT p.* FROM predictions p JOIN images USING (dataset, image_id) {of_it}").df()
    assert why.predictions["class_index"].tolist() == stored["class_index"].tolist()
    assert why.predictions["probability"].to_numpy() == pytest.approx(stored["probability"].to_numpy(), rel=1e-3)
    assert why.title == "Why dalmatian, and not Great Dane?"
    first, second = why.predictions["logit"][:2]
    assert why.values.score == pytest.approx(first - second, abs=1e-4)


def test_frames_are_of_one_sum(why: Explained) -> None:
    values = why.values
    added = values.score - values.baseline_score
    assert values.complete
    assert why.units["attribution"].sum() == pytest.approx(added, abs=0.02 * abs(added) + 1e-3)
    assert why.positions["attribution"].sum() == pytest.approx(why.units["attribution"].sum(), abs=1e-3)
    assert why.units["attribution"].is_monotonic_decreasing
    assert sorted(why.units["channel"]) == list(range(320))
    ends = [*range(5), *range(315, 320)]
    assert why.units["ablation"].notna().to_numpy().nonzero()[0].tolist() == ends
    channel = int(why.units["channel"][0])
    assert why.units["value"][0] == why.values.activations[channel].max()


def test_what_is_stored_and_what_is_seen_agree(scope: Scope, why: Explained) -> None:
    """The layer's values are those of the scan, and the units' values too."""
    row = scope.activations_of(DALMATIAN, layer=LAYER).sort_values("channel")
    mine = why.units.sort_values("channel")
    assert mine["tail_p"].to_numpy() == pytest.approx(row["tail_p"].to_numpy())
    assert mine["value"].to_numpy() == pytest.approx(
        row["value"].to_numpy(), abs=0.05 * float(row["value"].abs().max())
    )


def test_groups_are_measured_by_taking_them_away(why: Explained) -> None:
    groups = why.groups
    assert len(groups) == 6
    assert np.corrcoef(groups["attribution"], groups["ablation"])[0, 1] > 0.5
    assert 0.3 < why.values.groups.explained <= why.values.groups.possible <= 1


def test_a_class_against_itself_and_alone(scope: Scope) -> None:
    forward = scope.explain(DALMATIAN, "dalmatian", "Great Dane", LAYER, "patching", groups=0)
    back = scope.explain(DALMATIAN, "246", 251, LAYER, "patching", groups=0)
    assert forward.values.score == pytest.approx(-back.values.score, abs=1e-5)
    assert forward.values.by_unit == pytest.approx(-back.values.by_unit, abs=1e-5)
    alone = scope.explain(DALMATIAN, "n02110341", "", LAYER, "gradient", groups=0)
    assert alone.values.target == 251
    assert output_class(alone.dense.run, alone.labels, 1000, "cardigan") == 474  # 264 is the dog, with a capital
    assert alone.values.against is None
    assert alone.baseline == "zero"
    assert alone.title == "Why dalmatian?"
    assert alone.values.score == pytest.approx(float(alone.values.logits[251]))


def test_a_copy_of_a_picture_of_the_dataset_is_that_picture(scope: Scope, why: Explained, tmp_path: Path) -> None:
    foolbox = pytest.importorskip("foolbox")
    copy = tmp_path / "mine.jpg"
    copy.write_bytes((Path(foolbox.__file__).parent / "data" / "imagenet_16_251.jpg").read_bytes())
    same = scope.explain(copy, layer=LAYER, method="patching", groups=0)
    assert same.image_id == why.image_id
    assert same.image == DALMATIAN
    other = tmp_path / "other.png"
    Image.linear_gradient("L").convert("RGB").save(other)
    found = scope.explain(other, layer=LAYER, method="patching", groups=0)
    assert found.image_id is None
    book = scope.records[found.dense.run.name].book(found.layer, "max")
    reached = book.images_reaching(found.values.activations.max((1, 2)))
    n = found.dense.run.n
    assert found.units.sort_values("channel")["tail_p"].to_numpy() == pytest.approx((1 + reached) / (n + 1))


def test_what_is_said_of_the_sum_is_so(scope: Scope, why: Explained) -> None:
    added = why.values.score - why.values.baseline_score
    assert any(f"so the layer adds {added:.2f}. The attributions add up to that" in line for line in why.sentences)
    bent = scope.explain(DALMATIAN, layer="blocks.5.1.add", method="patching", groups=0)
    total = float(bent.values.attributions.sum(dtype=np.float64))
    assert abs(bent.values.residue) > 0.01 * abs(bent.values.score - bent.values.baseline_score)
    assert any(f"The attributions add up to {total:.2f}" in line for line in bent.sentences)
    assert scope.explain(DALMATIAN, "Great Dane", layer=LAYER, method="patching").title.startswith("What speaks for")


def test_the_sheet_shows_all_of_it(why: Explained) -> None:
    sheet = why.sheet()
    assert sheet.mode == "RGB"
    assert sheet.height > 1000
    pixels = np.asarray(sheet)
    assert len(np.unique(pixels.reshape(-1, 3)[::97], axis=0)) > 500  # photographs, not an empty page


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"target": "dalmation"}, "did you mean dalmatian"),
        ({"target": 1000}, "the network has 1000 outputs"),
        ({"target": 251, "against": "dalmatian"}, "are one class"),
        ({"layer": "blocks.9"}, "did you mean blocks"),
        ({"layer": "classifier", "method": "magic"}, "expected one of integrated, patching, gradient"),
        ({"method": "gradient", "baseline": "mean"}, "against zero by definition"),
        ({"target": "CARDIGAN"}, "is the name of the outputs 264, 474"),
        ({"target": True}, "expected the index, the label or the synset"),
        ({"target": -1}, "expected the index, the label or the synset"),
        ({"groups": 1000}, "expected 0 to 32"),
        ({"k": 0}, "ask for 1 or more"),
        ({"baseline": "grey"}, "baseline='grey': expected one of mean, zero"),
        ({"groups": -1}, "expected 0 to 32"),
        ({"render": -1}, "0 or more"),
        ({"groups": "six"}, "expected a whole number"),
    ],
)
def test_what_cannot_be_asked(scope: Scope, asked: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        scope.explain(DALMATIAN, **asked)  # type: ignore[arg-type]


def test_methods_are_those_of_the_pipeline() -> None:
    assert pipeline_explain.METHODS == terms.METHODS


def test_the_command(demo_store: Path, tmp_path: Path) -> None:
    sheet = tmp_path / "why.png"
    arguments = [str(demo_store), DALMATIAN, "--layer", LAYER, "--method", "patching", "--save", str(sheet)]
    found = CliRunner().invoke(command, [*arguments, "--format", "json", "-k", "2"], catch_exceptions=False)
    body = json.loads(found.stdout)
    assert body["layer"] == LAYER
    assert [row["rank"] for row in body["units"]] == [1, 2, 319, 320]
    assert len(body["positions"]) == 49
    assert body["sentences"][0].startswith("The network says dalmatian (46.")
    with Image.open(sheet) as image:
        assert image.format == "PNG"
    with pytest.raises(UsageError, match="leave --against out"):
        CliRunner().invoke(command, [*arguments, "--alone", "--against", "246"], catch_exceptions=False)
