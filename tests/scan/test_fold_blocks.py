"""What the fold gives does not depend on how many channels it takes together."""

from __future__ import annotations

from pathlib import Path

import h5py
import pytest
from support import faults

from pipeline import driver
from pipeline.config import parse_config
from pipeline.job import Job
from pipeline.stages import work_sizes
from pipeline.stages.fold_layer import blocks
from store import layout


def _job(root: Path) -> Job:
    config = {
        "model": {"source": "timm:tf_efficientnet_lite0", "weights": "random:0", "layers": ["bn1", "blocks.1.1.*"]},
        "dataset": {"source": "package:demo", "limit": 12},
        "scan": {"batch_size": 4, "shard_size": 8},
    }
    return Job(parse_config(config, "blocks"), root, progress=False)


def test_blocks_of_channels_change_no_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stages = ("index", "calibrate", "scan", "fold")
    whole, cut = _job(tmp_path / "whole"), _job(tmp_path / "cut")
    driver.run(whole, stages)
    monkeypatch.setattr(work_sizes, "MEMORY", 0)
    driver.run(cut, ("index", "calibrate", "scan"))
    places = range(len(cut.spec.layers))
    assert any(len(blocks(cut, place)) > 2 for place in places)
    with h5py.File(next((tmp_path / "cut").glob("**/scan/*.h5"))) as partial:
        width = partial["max"].chunks[1]
        assert width == work_sizes.FEWEST
        for place in places:
            start, found = cut.spec.units.slice(place).start, blocks(cut, place)
            assert [b.start for b in found[1:]] == [b.stop for b in found[:-1]]
            assert (found[0].start, found[-1].stop) == (0, cut.spec.layers[place].channels)
            assert all((start + b.start) // width == (start + b.stop - 1) // width for b in found), "one chunk each"
    driver.run(cut, ("fold",))

    def results(job: Job) -> dict[str, str]:
        kept = faults.digests(job.store.root)
        return {k: v for k, v in kept.items() if not k.startswith("commits") and "manifest" not in k}

    wanted, found_files = results(whole), results(cut)
    assert layout.table(whole.store.run, "units") in wanted
    assert {k: v for k, v in wanted.items() if "partials" not in k} == {
        k: v for k, v in found_files.items() if "partials" not in k
    }
