"""Raw SQL: the views and macros, and that it can do nothing but read the store, within its limits."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from support import synthetic_store
from support.synthetic_store import Synthetic

import query
import query.sql.database
from query.scope import Scope
from query.sql.database import Limits
from query.sql.worker import SqlWorker
from store import commits, schema
from store.errors import UsageError

VIEWS = {
    "models": "model source weights digest label_space input_height input_width preprocessing",
    "datasets": "dataset source root images rejected digest",
    "classes": "dataset class_index synset label",
    "runs": "run model dataset fingerprint",
    "edges": "model dataset source target",
    "images": "dataset image_id position path label class_index synset width height sha256 status reason source_file "
    "offset length",
    "rejected_images": "dataset image_id path reason",
    "tail": "model dataset layer channel image_id value tail_p y x",
    "groups": "model dataset layer group_index channel loading",
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Synthetic:
    return synthetic_store.build(tmp_path_factory.mktemp("sql") / "store")


@pytest.fixture(scope="module")
def scope(made: Synthetic) -> Iterator[Scope]:
    with query.open(made.root, limits=Limits(seconds=5, answer=64 << 20)) as opened:
        yield opened


def test_views_have_their_columns(scope: Scope) -> None:
    for table in schema.TABLES:
        wanted = VIEWS.get(table.name, "").split() or list(table.columns)
        assert scope.sql(f"SELECT * FROM {table.name} LIMIT 0").columns == wanted, table.name


def test_views_hold_the_tables(made: Synthetic, scope: Scope) -> None:
    rows = dict(scope.sql("SELECT status, count(*) FROM images GROUP BY 1").fetchall())
    assert rows == {"accepted": 58, "rejected": 2}
    found = scope.sql("SELECT image_id, reason FROM rejected_images ORDER BY 1").fetchall()
    assert found == sorted(synthetic_store.REJECTED.items())
    top = scope.sql("SELECT max(value) FROM tail WHERE layer = 'head' AND channel = 1").fetchone()
    assert top == (made.maxima("head")[made.ids, 1].max(),)
    assert scope.sql("SELECT count(*) FROM visualizations").fetchone() == (10,)
    assert scope.sql("SELECT * FROM groups").fetchall() == []


def test_result(scope: Scope) -> None:
    found = scope.sql("SELECT range AS n, range * 0.5 AS half, sum(range) OVER () AS total FROM range(3) ORDER BY n")
    assert found.columns == ["n", "half", "total"]
    assert found.fetchone() == (0, 0.0, 3)
    assert found.fetchall() == [(1, 0.5, 3), (2, 1.0, 3)]
    assert found.fetchone() is None
    assert found.df()["total"].dtype == "int64"
    assert found.arrow().num_rows == len(found) == 3
    assert found.pl().shape == (3, 3)


def test_parameters(scope: Scope) -> None:
    found = scope.sql("SELECT path FROM images WHERE image_id = ? AND label = ?", [3, "crane"]).fetchall()
    assert found == [("n02012849/picture_0003.png",)]


@pytest.mark.parametrize(
    ("text", "ask"),
    [
        ("top_units(7, 6)", lambda s: s.top_units(7, 6)),
        ("top_units(0, 100, model := 'toy', dataset := 'shapes')", lambda s: s.top_units(0, 100)),
        ("top_images('head:1', 30)", lambda s: s.top_images("head:1", 30)),
        ("unit_row('stem.relu:0')", lambda s: s.activations("stem.relu:0")),
        ("image_row(12)", lambda s: s.activations_of(12)),
        ("top_images_of_class('head:1', 'lighthouse', 5)", lambda s: s.top_images("head:1", 5, "lighthouse")),
        ("lowest_images('head:1', 5)", lambda s: s.top_images("head:1", 5, lowest=True)),
        ("both_high('head:1', 'stem.relu:1', 5)", lambda s: s.both("head:1", "stem.relu:1", k=5)),
        ("high_without('head:1', 'stem.relu:1', 5)", lambda s: s.both("head:1", "stem.relu:1", without=True, k=5)),
        ("similar_units('head:1', 4)", lambda s: s.similar_units("head:1", 4)),
        ("similar_units('head:1', 4, layers := 'stem.*')", lambda s: s.similar_units("head:1", 4, "stem.*")),
        ("inputs('head:1', 3)", lambda s: s.inputs("head:1", 3)),
        ("outputs('stem.relu:1', 3)", lambda s: s.outputs("stem.relu:1", 3)),
        ("similar_images(7, 'head', 4)", lambda s: s.similar_images(7, "head", 4)),
        ("units_for_class('lighthouse', 4)", lambda s: s.units_for_class("lighthouse", 4)),
        ("class_selectivity()", lambda s: s.class_selectivity()),
        ("class_selectivity(k := 2)", lambda s: s.class_selectivity(2)),
        ("separating_units('lighthouse', '134', 4)", lambda s: s.separating_units(437, 134, 4)),
        ("compare_models('toy', 'toy', 4)", lambda s: s.compare("toy", "toy", 4)),
        ("polysemantic_units(4)", lambda s: s.polysemantic_units(4)),
        ("unit_states()", lambda s: s.unit_states()),
        ("image_summary(7)", lambda s: s.image_summary(7)),
    ],
)
def test_macros_answer_as_the_api_does(scope: Scope, text: str, ask: object) -> None:
    assert callable(ask)
    found, wanted = scope.sql(f"FROM {text}").df(), ask(scope)
    assert list(found.columns) == list(wanted.columns)
    pd.testing.assert_frame_equal(found, wanted.astype(found.dtypes), check_dtype=False)


def test_macros_compose(scope: Scope) -> None:
    found = scope.sql(
        "SELECT i.image_id, t.layer, t.channel FROM images i, top_units(i.image_id, 1) t "
        "WHERE i.image_id IN (7, 8) ORDER BY 1"
    ).fetchall()
    assert found == [(i, *scope.top_units(i, 1)[["layer", "channel"]].iloc[0]) for i in (7, 8)]


def test_macro_errors_are_one_plain_line(scope: Scope) -> None:
    for text, wanted in (
        ("top_units(5, 3)", "SQL: image 5 was rejected (truncated file)"),
        ("top_units(7, 0)", "SQL: k=0: ask for 1 or more"),
        ("unit_row('head:70')", "SQL: unit head:70: layer head has channels 0 to 6"),
        ("top_images(NULL, 3)", "SQL: macro top_images: unit is NULL"),
    ):
        with pytest.raises(UsageError) as caught:
            scope.sql(f"SELECT * FROM {text}")
        assert str(caught.value) == wanted


def test_python_variables_are_out_of_reach(scope: Scope, monkeypatch: pytest.MonkeyPatch) -> None:
    """DuckDB looks for a table's name among the variables around the call, the package's own globals too."""
    monkeypatch.setattr(query.sql.database, "secret_frame", pd.DataFrame({"secret": [1]}), raising=False)
    with pytest.raises(UsageError, match="secret_frame does not exist"):
        scope.sql("SELECT * FROM secret_frame")


@pytest.mark.parametrize(
    "text",
    [
        "WITH RECURSIVE r(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM r) SELECT count(*) FROM r",
        "SELECT count(*) FROM range(10000000) a, range(10000000) b WHERE (a.range * b.range) % 7 = 3",
    ],
)
def test_endless_queries_are_stopped(made: Synthetic, text: str) -> None:
    with query.open(made.root, limits=Limits(seconds=0.3)) as scope:
        with pytest.raises(UsageError, match=r"stopped after 0\.3 s"):
            scope.sql(text)
        assert scope.sql("SELECT 1").fetchone() == (1,)


def test_the_time_limit_holds_while_rows_are_fetched(made: Synthetic) -> None:
    with (
        query.open(made.root, limits=Limits(seconds=0.3, answer=1 << 50)) as scope,
        pytest.raises(UsageError, match=r"stopped after 0\.3 s"),
    ):
        scope.sql("SELECT range FROM range(100000000000) WHERE sqrt(range) % 2 = 0.5")


def test_answers_and_memory_are_limited(made: Synthetic) -> None:
    with query.open(made.root, limits=Limits(memory=64 << 20, answer=1 << 20)) as scope:
        with pytest.raises(UsageError, match="larger than 1 MiB"):
            scope.sql("SELECT * FROM range(100000000)")
        with pytest.raises(UsageError, match=r"needs more than 0\.0625 GiB"):
            scope.sql("SELECT range FROM range(1000000000) ORDER BY hash(range)")


def test_many_scopes_and_threads_at_once(made: Synthetic) -> None:
    from concurrent.futures import ThreadPoolExecutor

    scopes = [query.open(made.root) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda i: scopes[i % 2].top_units(i, 3), range(12, 24)))
        macros = list(pool.map(lambda i: scopes[2].sql(f"FROM top_units({i}, 3)").fetchall(), range(12, 24)))
    for i, (answer, rows) in enumerate(zip(answers, macros, strict=True), 12):
        assert answer.equals(scopes[3].top_units(i, 3))
        assert [row[2] for row in rows] == answer["channel"].tolist()


@pytest.mark.parametrize("stages", [0, 1, 2, 3])
def test_an_unfinished_store_opens(tmp_path: Path, stages: int) -> None:
    """Views of what is not there yet are empty, with the right columns; questions say what is missing."""
    synthetic_store.build(tmp_path / "store", stages=stages)
    with query.open(tmp_path / "store") as scope:
        for table in schema.TABLES:
            assert scope.sql(f"SELECT * FROM {table.name} LIMIT 0").columns
        assert scope.sql("SELECT count(*) FROM units").fetchone() == (18 if stages > 1 else 0,)
        if stages < 2:
            with pytest.raises(UsageError, match="unitscope run"):
                scope.top_units(0)
        else:
            assert len(scope.top_units(0, 5)) == 5
            assert scope.contact_sheet("head:1").width > 1000


def test_files_no_record_lists_are_not_seen(tmp_path: Path) -> None:
    made = synthetic_store.build(tmp_path / "store")
    other = made.root / "runs" / made.run / "tables" / "tail_by_unit" / "extra.parquet"
    other.write_bytes((other.parent / "head.parquet").read_bytes())
    with query.open(made.root) as scope:
        found = scope.sql("SELECT count(*) FROM tail WHERE layer = 'head'").fetchone()
    brute = sum(1 for c in range(7) for _ in synthetic_store._tail_of(made, synthetic_store.LAYERS[2], c)["image_id"])
    assert found == (brute,)


def relist(made: Synthetic, stage: str, old: str, new: str) -> None:
    """A commit record that lists another file, as a hostile store might."""
    place = made.root / "commits" / made.run / stage / "all.json"
    body = json.loads(place.read_text())
    for file in body["files"]:
        file["path"] = file["path"].replace(old, new)
    body.pop("seal")
    place.write_text(commits.sealed(body))


@pytest.mark.parametrize("new", ["/etc/passwd", "datasets/../../outside.parquet", "datasets/shapes/link.parquet"])
def test_a_store_cannot_list_files_outside_itself(tmp_path: Path, new: str) -> None:
    made = synthetic_store.build(tmp_path / "store")
    outside = tmp_path / "outside.parquet"
    outside.write_bytes((made.root / "datasets/shapes/images.parquet").read_bytes())
    os.symlink(outside, made.root / "datasets/shapes/link.parquet")
    relist(made, "index", "datasets/shapes/images.parquet", new)
    with pytest.raises(UsageError, match="outside the store"):
        query.open(made.root)


def test_a_missing_recorded_file_is_named(tmp_path: Path) -> None:
    made = synthetic_store.build(tmp_path / "store")
    (made.root / "runs" / made.run / "tables" / "units.parquet").unlink()
    with pytest.raises(UsageError, match=r"tables/units\.parquet is recorded but missing.*repair"):
        query.open(made.root)


def test_damaged_arrays_are_one_line(tmp_path: Path) -> None:
    made = synthetic_store.build(tmp_path / "store")
    file = made.root / "runs" / made.run / "arrays" / "codes_by_image" / "00000.h5"
    file.write_bytes(file.read_bytes()[:100])
    with query.open(made.root) as scope, pytest.raises(UsageError, match="cannot be opened as HDF5"):
        scope.top_units(0)


def test_no_store(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is no unitscope store"):
        query.open(tmp_path)


def test_plain_numbers_beyond_int64(scope: Scope) -> None:
    (found,) = scope.sql("SELECT (9223372036854775807::HUGEINT * 4) AS big").fetchall()
    assert found == (pytest.approx(2.0**65),)
    assert np.isfinite(found[0])


def test_parameters_of_every_kind_reach_the_process_that_asks(scope: Scope) -> None:
    import datetime
    import decimal

    values = [
        None, True, np.int64(3), 2**62, np.float32(0.5), "ä'; --", b"\x00\xff", datetime.datetime(2026, 11, 25, 12),
        datetime.date(2026, 11, 25), decimal.Decimal("1.25"), [1, 2, 3],
    ]  # fmt: skip
    found = scope.sql(f"SELECT {', '.join(f'? AS c{i}' for i in range(len(values)))}", values).fetchone()
    wanted = [1.25 if isinstance(v, decimal.Decimal) else v for v in values]
    assert list(found or ()) == wanted
    for value in (object(), 2**64, [1, "a"], "\ud800", pd.NaT):
        with pytest.raises(UsageError, match="a parameter is no value of a database"):
            scope.sql("SELECT ?", [value])
    with pytest.raises(UsageError, match="the query is no text"):
        scope.sql("SELECT '\ud800'")


def test_an_asking_process_that_is_forgotten_ends(made: Synthetic) -> None:
    import gc

    worker = SqlWorker(made.root, Limits())
    assert worker.table("SELECT 1 AS one").to_pydict() == {"one": [1]}
    child = worker._child
    assert child is not None
    assert child.poll() is None
    del worker
    gc.collect()
    assert child.poll() is not None


def test_an_interrupted_question_leaves_no_answer_behind(scope: Scope) -> None:
    """Ctrl-C, as a notebook sends it: to this process alone."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        assert scope.sql("SELECT 'first' AS x").fetchone() == ("first",)
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        with pytest.raises(KeyboardInterrupt):
            scope.sql("SELECT count(*) AS stale FROM range(3000000000) WHERE range % 7 = 3")
        assert scope.sql("SELECT 'second' AS x").fetchone() == ("second",)
        assert scope._worker is not None
        scope._worker._stop()
        signal.setitimer(signal.ITIMER_REAL, 0.1)  # while the process starts
        with pytest.raises(KeyboardInterrupt):
            scope.sql("SELECT 'stale' AS x")
        assert scope.sql("SELECT 'third' AS x").fetchone() == ("third",)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_what_lies_in_the_working_directory_is_not_run(
    made: Synthetic, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "query").mkdir()
    for name in ("query/__init__.py", "json.py", "store.py"):
        (tmp_path / name).write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(query.__file__).parent.parent))
    with query.open(made.root) as scope:
        assert scope.sql("SELECT 1").fetchone() == (1,)
    assert not (tmp_path / "ran").exists()


def test_a_closed_store_answers_no_more(made: Synthetic) -> None:
    scope = query.open(made.root)
    scope.close()
    with pytest.raises(UsageError, match="the store was closed"):
        scope.sql("SELECT 1")
    scope.close()
