"""What `plan` makes of its measurements. How near it comes to a run is measured by `benchmarks/plan.py`."""

from __future__ import annotations

from pathlib import Path

import pytest
from support import rehearsals

from pipeline.commands.plan import Rates, duration
from pipeline.commands.rehearsal import Costs, Rendering, Seconds, between, of_fold_and_examples, side_by_side
from pipeline.config import parse_config
from pipeline.job import Job
from pipeline.stages import STAGES, visualize

COSTS = Costs(layer=1, unit=0.1, value=0.01, row=0.001, start_of_examples=5, map=0.5, position=0.25, noise=0.1)


def _job(tmp_path: Path, **visualize_section: object) -> Job:
    sections = {
        "model": {"source": "python:support.small_networks:vgg"},
        "dataset": {"source": "package:demo", "limit": 8},
        "scan": {"batch_size": 4},
        "visualize": {"batch": 4, "steps": 20, **visualize_section},
        "compute": {"threads": 2},
    }
    return Job(parse_config(sections, "test"), tmp_path / "store", progress=False)


def test_works_begin_in_order_as_streams_become_free() -> None:
    works = [Seconds(s, 2 * s) for s in (4, 1, 2, 5)]  # 4 | 1 2 5
    assert side_by_side(works, 2) == Seconds(8, 16)
    assert side_by_side(works, 1) == Seconds(12, 24)
    assert side_by_side(works, 8) == Seconds(5, 10)


def test_layers_lie_between_those_that_were_measured() -> None:
    measured = [Rendering(10, Seconds(1, 2), 0.5), Rendering(20, Seconds(3, 6), 1.5)]
    assert between(measured, 15) == Rendering(15, Seconds(2, 4), 1.0)
    assert between(measured, 99).picture == Seconds(3, 6)


def test_a_range_where_measurements_differ() -> None:
    assert duration(Seconds(90, 100)) == "1.6 min"
    assert duration(Seconds(60, 120)) == "1.0 to 2.0 min"
    assert duration(Seconds(20, 22)) == "21 s"
    assert duration(Seconds(2, 4)) == "2.0 to 4.0 s"


def test_every_long_stage_has_an_estimate_of_all_its_work(tmp_path: Path) -> None:
    job = _job(tmp_path, layers=["features.2"], units_per_layer=6)
    (layer,) = job.spec.visualized
    measured = (Rendering(job.spec.model.graph.cost(layer), Seconds(3, 3), 7),)
    rates = Rates(Seconds(2, 2), 11, Seconds(0.5, 0.5), COSTS, measured)
    found = {stage.name: rates.seconds(job, stage.work(job)) for stage in STAGES}
    layers, units = len(job.spec.layers), int(job.spec.units.offsets[-1])
    assert found["scan"].middle == 8 * 2 + 11
    classes = 4
    assert found["fold"].middle == pytest.approx(layers + units * (0.1 + 8 * 0.01 + classes * 0.001))
    assert found["fold"].high / found["fold"].low == pytest.approx(1.1 / 0.9)
    kept = sum(x.channels * min(x.height, 14) * min(x.width, 14) for x in job.spec.layers) * 8
    assert found["examples"].middle == pytest.approx(8 * 2 + 8 * 0.5 + 5 + layers * 8 * 0.5 + kept * 0.25)
    # a batch of 4 and one of 2, in shards of at most shard_size pictures
    assert [sum(sizes) for _, sizes in visualize.shards_planned(job)] == [6]
    assert found["visualize"].middle == 6 * 3 + 7


def test_batches_are_planned_as_they_are_padded(tmp_path: Path) -> None:
    job = _job(tmp_path, layers=["features.2"], units_per_layer=7, shard_size=4)
    assert [sizes for _, sizes in visualize.shards_planned(job)] == [(4,), (4,)]  # 4 pictures, and 3 in a batch of 4


def test_a_rehearsal_finds_costs_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "temporary").mkdir()
    rehearsals.shorten(monkeypatch)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    found = of_fold_and_examples(_job(tmp_path), 3)
    assert found.value >= 0  # a difference of two times
    assert found.unit + found.layer > 0
    assert found.position + found.map + found.start_of_examples > 0
    assert not list((tmp_path / "temporary").iterdir())
    assert not (tmp_path / "store").exists()
