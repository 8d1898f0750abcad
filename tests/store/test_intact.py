"""A file is compared with its digest when it is first read, and again when it has changed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest
from support import synthetic_store

import query
from query.sql import catalog
from query.sql.database import Limits
from store import commits, export, intact
from store.errors import Notice, UsageError
from store.intact import Intact
from store.publish import Publication


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthetic_store.build(tmp_path_factory.mktemp("intact") / "store").root


@pytest.fixture
def store(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy that may be damaged."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root = shutil.copytree(built, tmp_path / "store")
    for path in root.rglob("*.parquet"):
        os.utime(path, (1e9, 1e9))  # settled long ago
    return root


def _hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that grows by the name of every file that is hashed."""
    names: list[str] = []
    real = Intact._hashed

    def hashed(self: Intact, path: Path) -> object:
        names.append(path.name)
        return real(self, path)

    monkeypatch.setattr(Intact, "_hashed", hashed)
    return names


def _units(store: Path) -> object:
    with query.open(store, limits=Limits(isolated=False)) as scope:
        return scope.sql("SELECT count(*), sum(max_mean) FROM units").fetchone()


def _table(store: Path) -> Path:
    return next(store.rglob("tables/units.parquet"))


def _flip(path: Path, at: int = -200) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_each_file_is_hashed_once(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = _hashed(monkeypatch)
    wanted = _units(store)
    assert names == ["units.parquet"]
    assert _units(store) == wanted
    assert names == ["units.parquet"], "the next process finds it in the cache"
    _table(store).touch()
    assert _units(store) == wanted
    assert names == ["units.parquet"] * 2, "it may have changed"
    assert _units(store) == wanted
    assert names == ["units.parquet"] * 3, "and may be changing still"


@pytest.mark.parametrize("kept", ["[]", "{", '{"x": 1}', '{"runs/x": "x"}', "[" * 100_000])
def test_what_is_kept_is_not_believed_blindly(store: Path, monkeypatch: pytest.MonkeyPatch, kept: str) -> None:
    wanted = _units(store)
    (file,) = intact.folder().iterdir()
    file.write_text(kept)
    names = _hashed(monkeypatch)
    assert _units(store) == wanted
    assert names == ["units.parquet"]


def test_damage_is_one_line_that_says_where_and_what_to_do(store: Path) -> None:
    _flip(_table(store))
    with pytest.raises(UsageError) as caught:
        _units(store)
    assert str(_table(store)) in str(caught.value)
    assert "stage fold" in str(caught.value)
    assert f"unitscope repair {store}" in str(caught.value)
    with query.open(store) as scope:  # in the child process too
        with pytest.raises(UsageError, match="stage fold is damaged"):
            scope.sql("SELECT count(*) FROM units")
        assert scope.sql("SELECT count(*) FROM layers").fetchone() is not None, "other tables are whole"


def test_every_way_to_name_a_table_is_checked(store: Path) -> None:
    table = _table(store)
    _flip(table)
    with query.open(store, limits=Limits(isolated=False)) as scope:
        for text in (
            'SELECT count(*) FROM "units"',
            "SELECT count(*) FROM UNITS",
            "WITH a AS (FROM units) SELECT count(*) FROM a",
            f"SELECT count(*) FROM '{table}'",
            f"SELECT count(*) FROM read_parquet('{table}')",
            "SELECT count(*) FROM query_table('un' || 'its')",
            "SELECT count(*) FROM query('FROM un' || 'its')",
        ):
            with pytest.raises(UsageError, match="is damaged"):
                scope.sql(text)
        with pytest.raises(UsageError, match="is damaged"):
            scope.unit_states()


def test_missing_cut_unreadable_and_unlisted_files(store: Path) -> None:
    records = commits.records(store)
    table, whole = _table(store).resolve(), _table(store).read_bytes()
    table.write_bytes(whole[:-1])
    with pytest.raises(UsageError, match=f"it has {len(whole) - 1} bytes"):
        Intact(store, records).require([table])
    table.unlink()
    with pytest.raises(UsageError, match="No such file"):
        Intact(store, records).require([table])
    table.mkdir()
    with pytest.raises(UsageError, match="is damaged"):
        Intact(store, records).require([table])
    with pytest.raises(UsageError, match="no commit record lists it"):
        Intact(store, records).require([store.resolve() / "runs" / "x.parquet"])


def test_a_file_that_cannot_be_read(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(hashlib, "file_digest", fail)
    with pytest.raises(UsageError, match="Input/output error"):
        _units(store)


def test_a_cache_that_cannot_be_written_is_no_error(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (store.parent / "file").write_text("x")
    monkeypatch.setenv("XDG_CACHE_HOME", str(store.parent / "file"))
    assert _units(store)


def test_long_checks_are_said(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intact, "LONG", 10)
    with pytest.warns(Notice, match="checking"):
        _units(store)


def test_what_is_kept_is_of_files_that_are_listed(store: Path) -> None:
    _units(store)
    (file,) = intact.folder().iterdir()
    kept = json.loads(file.read_text())
    file.write_text(json.dumps(kept | {"runs/gone.parquet": [1]}))
    with query.open(store, limits=Limits(isolated=False)) as scope:
        scope.sql("SELECT count(*) FROM layers")
    assert {Path(name).name for name in json.loads(file.read_text())} == {"units.parquet", "layers.parquet"}


def test_an_export_writes_no_damage(store: Path, tmp_path: Path) -> None:
    run = commits.records(store)[0].run
    for damaged in (_table(store), next(store.rglob("codes_by_unit/*.h5"))):
        whole = damaged.read_bytes()
        _flip(damaged)
        with pytest.raises(UsageError, match="is damaged"):
            export.export(store, run, tmp_path / "to")
        assert not (tmp_path / "to").exists()
        damaged.write_bytes(whole)
    export.export(store, run, tmp_path / "to")


def test_a_moved_store_is_checked_anew(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _units(store)
    shutil.copytree(store, tmp_path / "copy")
    names = _hashed(monkeypatch)
    _units(tmp_path / "copy")
    assert names == ["units.parquet"]


def test_a_recorded_file_that_is_no_table_is_not_opened(store: Path) -> None:
    with Publication(store, "toy@shapes", "index", "other", "f") as out:
        out.path("datasets/shapes/notes.txt").write_text("x")
        out.commit()
    assert "notes" not in catalog.read(store).datasets["shapes"]


def test_words_of_a_query_name_its_tables(store: Path) -> None:
    files = catalog.read(store)

    def named(text: str) -> set[str]:
        return {path.stem for path in files.named_in(text)}

    assert named("SELECT 1") == set()
    assert named("FROM units JOIN layers USING (layer)") == {"units", "layers"}
    assert "images" in named("FROM rejected_images")
    assert {"units", "layers", "images"} <= named("FROM read_parquet('x')")
