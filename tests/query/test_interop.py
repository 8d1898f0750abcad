"""A store elsewhere and with other tools: moved, read-only, ten processes, DuckDB, pandas, polars and h5py alone."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import duckdb
import h5py
import numpy as np
import pandas as pd
import polars
import pytest
from click.testing import CliRunner
from support import ROOT, synthetic_store
from support.synthetic_store import Synthetic

import query
from query.sql.database import Limits
from store import verify
from store.errors import UsageError
from unitscope import cli

ASK = """
import json, sys
import query
with query.open(sys.argv[1]) as scope:
    print(json.dumps([
        scope.top_units(7, 5)["channel"].tolist(), scope.top_images("head:1", 5)["image_id"].tolist(),
        scope.similar_images(7, "head", 5)["image_id"].tolist(), scope.both("head:1", "head:4")["image_id"].tolist(),
        scope.sql("SELECT count(*), sum(value) FROM tail").fetchone(),
    ]))
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Synthetic:
    return synthetic_store.build(tmp_path_factory.mktemp("interop") / "store")


def ask(root: Path, user: int | None = None) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", ASK, str(root)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
        user=user,
    )  # fmt: skip


def answer(process: subprocess.Popen[str]) -> str:
    out, error = process.communicate()
    assert process.returncode == 0, error
    return out


def test_ten_processes_ask_a_copy_that_was_moved(made: Synthetic, tmp_path: Path) -> None:
    """Nothing in a store says where it is."""
    shutil.copytree(made.root, tmp_path / "first")
    os.rename(tmp_path / "first", tmp_path / "then moved")
    wanted = answer(ask(made.root))
    processes = [ask(tmp_path / "then moved") for _ in range(10)]
    assert [answer(process) for process in processes] == [wanted] * 10


def test_a_read_only_mount(made: Synthetic, tmp_path: Path) -> None:
    """Mounted read-only where this process may; else with every right to write taken away."""
    root, wanted = tmp_path / "store", answer(ask(made.root))
    root.mkdir()
    mounted = subprocess.run(["mount", "--bind", str(made.root), str(root)], capture_output=True, check=False)
    if mounted.returncode == 0:
        try:
            subprocess.run(["mount", "-o", "remount,bind,ro", str(root)], check=True)
            with pytest.raises(OSError, match="Read-only"):
                (root / "x").write_text("")
            assert answer(ask(root)) == wanted
            assert not verify.verify(root).problems
        finally:
            subprocess.run(["umount", str(root)], check=True)
        return
    shutil.copytree(made.root, root, dirs_exist_ok=True)
    for path in [*root.rglob("*"), root]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        assert answer(ask(root)) == wanted
    finally:
        for path in [root, *root.rglob("*")]:
            path.chmod(0o755 if path.is_dir() else 0o644)


def test_duckdb_alone(made: Synthetic) -> None:
    """`unitscope views` makes the same views for DuckDB."""
    printed = CliRunner().invoke(cli, ["views", str(made.root)], catch_exceptions=False)
    text = printed.output
    assert not (made.root / "views.sql").exists(), "it could hold any SQL in a store from elsewhere"
    with duckdb.connect() as connection, query.open(made.root) as scope:
        connection.execute(text)
        for name, *_ in connection.execute("SHOW TABLES").fetchall():
            rows = connection.execute(f"SELECT * FROM {name} ORDER BY ALL").fetchall()
            assert rows == scope.sql(f"SELECT * FROM {name} ORDER BY ALL").fetchall(), name


def test_pandas_polars_and_arrow_hold_the_same(made: Synthetic) -> None:
    with query.open(made.root) as scope:
        found = scope.sql("SELECT * FROM units ORDER BY layer, channel")
        frame, other = found.df(), found.pl()
    file = next(made.root.rglob("units.parquet"))
    alone = pd.read_parquet(file).astype({"layer": "str"}).sort_values(["layer", "channel"], ignore_index=True)
    plain = polars.read_parquet(file).sort(polars.col("layer").cast(polars.String), "channel")
    for name in ("max_mean", "channel", "dead", "saturated"):
        assert frame[name].tolist() == pytest.approx(alone[name].tolist(), nan_ok=True)
        assert other[name].to_list() == plain[name].to_list()


def test_h5py_and_pandas_alone_give_tail_probabilities(made: Synthetic) -> None:
    """As docs/store.md says: a code's tail probability is the share of images with at least that code."""
    (run,) = (made.root / "runs").iterdir()
    layers = pd.read_parquet(run / "tables" / "layers.parquet")
    first = 0
    for name, channels in zip(layers["layer"], layers["channels"], strict=True):
        value = made.maxima(name)[made.ids]
        with (
            h5py.File(run / "arrays" / "codes.h5") as books,
            h5py.File(run / f"arrays/codes_by_unit/{name}.h5") as file,
        ):
            counts, means = books[f"{name}/max/counts"][()], books[f"{name}/max/means"][()]
            codes = file["max"][()][:, made.ids].astype(int)
        reaching = counts[:, ::-1].cumsum(1)[:, ::-1]
        tail_p = np.take_along_axis(reaching, codes, 1) / len(made.ids)
        assert ((value[None] >= value[:, None]).mean(1) == tail_p.T).all()
        assert (value == np.take_along_axis(means, codes, 1).T).all()
        with h5py.File(run / "arrays/codes_by_image/00000.h5") as file:
            assert (codes == file["max"][()][made.ids, first : first + channels].T).all()
        first += channels


@pytest.mark.parametrize("globs", [(), ("head",), ("stem.*", "block.*")])
def test_an_exported_store_is_valid_and_answers_as_the_whole(
    made: Synthetic, tmp_path: Path, globs: tuple[str, ...]
) -> None:
    to = tmp_path / "small"
    command = ["export", str(made.root), "--run", made.run, "--to", str(to)]
    done = CliRunner().invoke(cli, [*command, *(part for glob in globs for part in ("--layers", glob))])
    assert done.exit_code == 0, done.output
    report = verify.verify(to)
    assert report.problems == ()
    assert CliRunner().invoke(cli, ["verify", str(to)]).exit_code == 0
    with query.open(made.root) as whole, query.open(to) as small:
        kept = small.sql("SELECT layer FROM layers ORDER BY layer_index").df()["layer"].tolist()
        assert kept == [layer.name for layer in synthetic_store.LAYERS if not globs or whole_matches(layer.name, globs)]
        for name in kept:
            unit = f"{name}:1"
            assert small.top_images(unit, 60).equals(whole.top_images(unit, 60))
            assert small.activations(unit).equals(whole.activations(unit))
            assert small.similar_units(unit, 3).equals(whole.similar_units(unit, 3))
            assert small.similar_images(7, name, 5).equals(whole.similar_images(7, name, 5))
            assert small.contact_sheet(unit).tobytes() == whole.contact_sheet(unit).tobytes()
        assert small.top_units(7, 9).equals(whole.top_units(7, 9, layer=kept))
        assert small.activations_of(8).equals(whole.activations_of(8, layer=kept))
        units = small.units_for_class(437, None).drop(columns="rank")
        assert units.equals(whole.units_for_class(437, None, layer=kept).drop(columns="rank"))
        assert small.separating_units(134, 437, 5).equals(whole.separating_units(134, 437, 5, layer=kept))
        assert small.sql("SELECT * FROM images ORDER BY ALL").df().equals(whole.sql("FROM images ORDER BY ALL").df())
        assert small.sql("SELECT * FROM rejected_images").df().equals(whole.sql("FROM rejected_images").df())
    size = sum(path.stat().st_size for path in to.rglob("*") if path.is_file())
    assert not globs or size < sum(path.stat().st_size for path in made.root.rglob("*") if path.is_file())


def whole_matches(name: str, globs: tuple[str, ...]) -> bool:
    return any(Path(name).match(glob) for glob in globs)


def test_an_exported_demo_store_is_valid(demo_store: Path, tmp_path: Path) -> None:
    """Of a real run: shards, partials that are gone, pictures and visualizations."""
    run = "tf_efficientnet_lite0@demo"
    for to, more in (("whole", []), ("small", ["--layers", "blocks.5.2.*"])):
        command = ["export", str(demo_store), "--run", run, "--to", str(tmp_path / to), *more]
        assert CliRunner().invoke(cli, command).exit_code == 0
        assert verify.verify(tmp_path / to).problems == ()
        assert "complete" in CliRunner().invoke(cli, ["status", str(tmp_path / to)]).output
    for path in demo_store.rglob("*"):
        if path.is_file() and "logs" not in path.parts:
            assert (tmp_path / "whole" / path.relative_to(demo_store)).read_bytes() == path.read_bytes(), path
    with query.open(tmp_path / "small") as small, query.open(demo_store) as whole:
        unit = small.sql("SELECT layer || ':' || channel FROM visualizations LIMIT 1").fetchone()
        assert unit is not None
        assert (small.visualization(unit[0]) == whole.visualization(unit[0])).all()
        assert small.contact_sheet(unit[0]).tobytes() == whole.contact_sheet(unit[0]).tobytes()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("--run", "no@such"), "is unknown"),
        (("--layers", "nothing.*"), "layer 'nothing\\.\\*' is unknown"),
        (("--to", "{full}"), "is not empty"),
    ],
)
def test_export_refuses_in_one_line(made: Synthetic, tmp_path: Path, change: tuple[str, str], said: str) -> None:
    (tmp_path / "file").write_text("x")
    options = {"--run": made.run, "--to": str(tmp_path / "to")} | {
        change[0]: change[1].replace("{full}", str(tmp_path))
    }
    with pytest.raises(UsageError, match=said) as caught:
        CliRunner().invoke(
            cli, ["export", str(made.root), *(part for pair in options.items() for part in pair)],
            catch_exceptions=False, standalone_mode=False,
        )  # fmt: skip
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "to").exists()


def test_unrolling_everything_is_refused_politely(made: Synthetic, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("query.questions.macros.UNROLLED", 500)
    with query.open(made.root, limits=Limits(isolated=False)) as scope:  # the patch is of this process
        for text, macro in (
            ("SELECT count(*) FROM units u, unit_row(u.layer || ':' || u.channel)", "unit_row"),
            ("SELECT count(*) FROM (FROM images WHERE status = 'accepted') i, image_row(i.image_id)", "image_row"),
        ):
            with pytest.raises(UsageError, match=rf"{macro} of \d+ at once is .* rows: ask for at most \d+ at a time"):
                scope.sql(text)
        few = "SELECT count(*) FROM (FROM units WHERE layer = 'head' LIMIT 7) u, unit_row(u.layer || ':' || u.channel)"
        assert scope.sql(few).fetchone() == (7 * 58,)


def test_a_compound_question_over_few_rows_joins_with_any_table(made: Synthetic) -> None:
    with query.open(made.root) as scope:
        found = scope.sql(
            "SELECT i.label, avg(r.value) AS mean FROM unit_row('head:1') r JOIN images i USING (image_id) "
            "GROUP BY ALL ORDER BY ALL"
        ).df()
    value = pd.DataFrame({"label": made.class_index[made.ids], "mean": made.maxima("head")[made.ids, 1]})
    value["label"] = value["label"].map(dict(zip(synthetic_store.CLASSES, synthetic_store.LABELS, strict=True)))
    assert found["mean"].tolist() == pytest.approx(value.groupby("label")["mean"].mean().tolist())
