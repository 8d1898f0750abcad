"""A store of format 1 that unitscope 0.1.0 wrote: every later version reads it, and answers what its files say."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from PIL import Image
from support import ROOT

import query
from query.sql.database import Limits
from store import commits, export, schema, verify
from unitscope import cli

RUN = "plain@few"
PAGE = (ROOT / "docs" / "format.md").read_text()


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("format")
    with tarfile.open(Path(__file__).with_name("format-1.tar.xz")) as tar:
        tar.extractall(folder, filter="data")
    return folder / "store"


def _table(store: Path, name: str) -> pd.DataFrame:
    return pd.read_parquet(store / f"runs/{RUN}/tables/{name}.parquet")


def test_it_is_whole(old: Path) -> None:
    report = verify.verify(old)
    assert report.problems == ()
    assert report.files == 30


def test_records_are_what_the_page_says(old: Path) -> None:
    """Read with json and hashlib alone."""
    manifest = json.loads((old / "manifest.json").read_text())
    assert manifest["format"] == 1
    bodies = []
    for path in sorted((old / "commits").rglob("*.json")):
        body = json.loads(path.read_text())
        seal = body.pop("seal")
        text = json.dumps(body, sort_keys=True, indent=1, ensure_ascii=False) + "\n"
        assert hashlib.sha256(text.encode()).hexdigest() == seal
        assert path.relative_to(old).as_posix() == f"commits/{body['run']}/{body['stage']}/{body['shard']}.json"
        bodies.append(body)
        for key in body:
            assert f"`{key}`" in PAGE
    assert sorted(bodies, key=lambda b: (b["run"], b["stage"], b["shard"])) == manifest["records"]
    for body in bodies:
        for file in body["files"]:
            if "/partials/" not in file["path"]:
                assert hashlib.sha256((old / file["path"]).read_bytes()).hexdigest() == file["sha256"]


def test_every_view_is_its_file(old: Path) -> None:
    with query.open(old, limits=Limits(isolated=False)) as scope:
        for table in schema.TABLES:
            found = scope.sql(f"SELECT * FROM {table.name}").df()
            if table.name != "rejected_images":  # a view over the index and the scan's table
                assert list(found.columns) == list(table.columns), table.name
        layers = scope.sql("SELECT * FROM layers ORDER BY layer_index").df()
        assert layers["spatial"].tolist() == [True] * 3, "which 0.1.0 did not know"
        assert "spatial" not in _table(old, "layers").columns
        units = scope.sql("SELECT * FROM units ORDER BY layer, channel").df()
    alone = _table(old, "units").astype({"layer": str}).sort_values(["layer", "channel"], ignore_index=True)
    for column in ("maximum", "max_mean", "max_sd", "q99"):
        np.testing.assert_array_equal(units[column], alone[column])


def test_questions(old: Path) -> None:
    examples = _table(old, "top_examples")
    with query.open(old, limits=Limits(isolated=False)) as scope:
        for layer, channel in (("2", 0), ("5", 3), ("13", 20)):
            mine = examples[(examples["layer"] == layer) & (examples["channel"] == channel)]
            mine = mine[mine["direction"] == "highest"].sort_values("rank")
            found = scope.top_images(f"{layer}:{channel}", 3)
            assert found["image_id"].tolist() == mine["image_id"].tolist()
            np.testing.assert_array_equal(found["value"], mine["value"])
            with h5py.File(old / f"runs/{RUN}/arrays/codes_by_unit/{layer}.h5", locking=False) as file:
                codes = file["max"][channel]
            with h5py.File(old / f"runs/{RUN}/arrays/codes.h5", locking=False) as file:
                means = file[f"{layer}/max/means"][channel]
            values = scope.activations(f"{layer}:{channel}").set_index("image_id")["value"]
            np.testing.assert_allclose(values, means[codes][values.index], rtol=1e-6)
        with h5py.File(old / f"runs/{RUN}/arrays/visualizations/2.h5", locking=False) as file:
            np.testing.assert_array_equal(scope.visualization("2:0"), file["channel/positive"][0])
        with h5py.File(old / f"runs/{RUN}/arrays/examples/images.h5", locking=False) as file:
            first = file["jpeg"][file["offsets"][0] : file["offsets"][1]]
        assert Image.open(io.BytesIO(first.tobytes())).size[0] > 30
        assert scope.contact_sheet("2:0").width > 100
        assert scope.sql("SELECT count(*) FROM rejected_images").fetchone() == (1,)
        assert len(scope.top_units(0, 5)) == 5
        assert len(scope.similar_units("2:0", 3))


def test_commands_take_it(old: Path, tmp_path: Path) -> None:
    for words in (["status"], ["verify"], ["views"]):
        done = CliRunner().invoke(cli, [*words, str(old)], catch_exceptions=False)
        assert done.exit_code == 0
        assert done.output.strip()
    export.export(old, RUN, tmp_path / "part", ["2"])
    assert not verify.verify(tmp_path / "part").problems
    with query.open(tmp_path / "part", limits=Limits(isolated=False)) as scope:
        assert scope.sql("SELECT layer, spatial FROM layers").fetchall() == [("2", True)]


def test_another_format_is_refused(old: Path, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(commits.sealed({"format": 2, "records": []}))
    with pytest.raises(Exception, match="is a store of format 2"):
        query.open(tmp_path)


def test_what_the_page_says_of_files(old: Path) -> None:
    for path in sorted(old.rglob("*.h5")):
        with h5py.File(path) as file:
            names: list[str] = []
            file.visit(names.append)
            found = [file[name] for name in names if isinstance(file[name], h5py.Dataset)]
            assert found
            for dataset in found:
                assert dataset.fletcher32 or not dataset.size
                assert dataset.compression in (None, "gzip")
                assert dataset.dtype.name in PAGE
                leaf = dataset.name.rsplit("/", 1)[1]
                assert f"`{leaf}`" in PAGE or f"/{leaf}`" in PAGE or path.parent.name in ("visualizations", "examples")
