"""What the catalog makes of commit records that a later version, or a stranger, wrote."""

from __future__ import annotations

from pathlib import Path

import pytest

from query.sql import catalog
from store import publish


def _publish(root: Path, stage: str, shard: str, path: str, facts: dict[str, object]) -> None:
    with publish.Publication(root, "m@d", stage, shard, "fingerprint") as out:
        out.path(path).write_bytes(b"contents")
        out.commit(facts)


def test_files_of_a_dataset_that_are_no_tables_are_left_alone(tmp_path: Path) -> None:
    publish.ensure_store(tmp_path)
    _publish(tmp_path, "index", "index", "datasets/d/notes.txt", {})
    found = catalog.read(tmp_path)
    assert found.datasets == {}
    assert found.runs == ()


@pytest.mark.parametrize(
    ("facts", "shown"),
    [
        ({"layer": "a", "direction": "positive", "channels": [0, 3]}, {"a": [(0, 3)]}),
        ({"layer": "a", "direction": "negative", "channels": [0]}, {}),
        ({"layer": 7, "direction": "positive", "channels": [0]}, {}),
        ({"layer": "a", "direction": "positive", "channels": [-1]}, {}),
        ({"layer": "a", "direction": "positive", "channels": "0"}, {}),
        ({}, {}),
    ],
)
def test_renderings_that_wait_for_the_end_of_their_stage(
    facts: dict[str, object], shown: dict[str, list[tuple[int, ...]]], tmp_path: Path
) -> None:
    publish.ensure_store(tmp_path)
    _publish(tmp_path, "visualize", "a-00000", "runs/m@d/partials/visualize/a-00000.h5", facts)
    _publish(tmp_path, "fold", "finish", "runs/m@d/arrays/codes.h5", {})
    (run,) = catalog.read(tmp_path).runs
    assert {layer: [r.channels for r in found] for layer, found in run.rendering.items()} == shown
    _publish(tmp_path, "visualize", "finish", "runs/m@d/arrays/visualizations/a.h5", {})
    assert catalog.read(tmp_path).runs[0].rendering == {}
