"""Tests of two processes that publish the same shard, or the same dataset, at the same time."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from store import commits, housekeeping, intents, publish
from store.errors import UsageError
from store.publish import DisagreementError, Publication

RUN, OTHER = "toy@shapes", "other@shapes"
TABLE, PICTURES = f"runs/{RUN}/tables/x.parquet", "datasets/shapes/images.parquet"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    publish.ensure_store(tmp_path / "store")
    return tmp_path / "store"


def _begun(root: Path, path: str, text: str, run: str = RUN, stage: str = "fold") -> Publication:
    out = Publication(root, run, stage, "finish", "f")
    out.path(path).write_text(text)
    return out


def _when_renaming(monkeypatch: pytest.MonkeyPatch, then: Callable[[], object]) -> None:
    """Do something once, just before the first rename: the other process is as fast as it can be."""
    real, left = os.replace, [then]

    def replace(source: Path, target: Path) -> None:
        if left:
            left.pop()()
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)


def _left(root: Path) -> list[str]:
    return [p.name for p in root.rglob(f"{publish.TEMPORARY}*")]


def test_the_slower_one_gives_up_before_it_touches_a_file(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = _begun(root, TABLE, "first"), _begun(root, TABLE, "second")
    raised = []

    def other() -> None:
        with pytest.raises(DisagreementError, match="is publishing other contents") as error, second:
            second.commit()
        raised.append(error)

    _when_renaming(monkeypatch, other)
    with first:
        record = first.commit()
    assert raised
    assert (root / TABLE).read_text() == "first"
    assert record.files[0].sha256 == publish.sha256(root / TABLE)
    assert not _left(root)


def test_after_the_end_the_other_contents_are_refused(root: Path) -> None:
    first, second = _begun(root, TABLE, "first"), _begun(root, TABLE, "second")
    with first:
        first.commit()
    with pytest.raises(DisagreementError, match="two runs of one shard must agree"), second:
        second.commit()
    assert (root / TABLE).read_text() == "first"
    assert not _left(root)


def test_equal_contents_go_on_side_by_side(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = _begun(root, TABLE, "same"), _begun(root, TABLE, "same")
    faster: list[commits.Record] = []
    _when_renaming(monkeypatch, lambda: faster.append(second.commit()))
    with first:
        assert [first.commit().text()] == [record.text() for record in faster]
    assert not _left(root)


def test_two_runs_do_not_index_other_pictures_under_one_name(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They have records of their own, so that only the dataset's announcement tells them of each other."""
    facts = {"config": "", "dataset": "shapes", "digest": "", "listing": "", "model": "", "weights": ""}
    first = _begun(root, PICTURES, "cats", RUN, "index")
    second = _begun(root, PICTURES, "dogs", OTHER, "index")

    def other() -> None:
        with pytest.raises(DisagreementError), second:
            second.commit(facts)

    _when_renaming(monkeypatch, other)
    with first:
        first.commit(facts)
    assert (root / PICTURES).read_text() == "cats"
    assert [r.run for r in commits.records(root)] == [RUN]


def test_what_is_confirmed_last_can_still_say_no(root: Path) -> None:
    def no() -> None:
        raise UsageError("taken")

    with Publication(root, RUN, "fold", "finish", "f", no) as out:
        out.path(TABLE).write_text("x")
        with pytest.raises(UsageError, match="taken"):
            out.commit()
    assert not (root / TABLE).exists()
    assert not _left(root)


def test_an_announcement_of_a_dead_process_stops_nobody(root: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    folder = root / "commits" / RUN / "fold"
    folder.mkdir(parents=True)
    announcement = folder / f"{publish.TEMPORARY}intent~finish.json"
    text = f'{{"owner": "{intents.host()}~{dead.pid}", "text": "other"}}'
    announcement.write_text(text)
    with _begun(root, TABLE, "mine") as out:
        out.commit()
    assert not _left(root)
    announcement.write_text(text)
    housekeeping.remove_stale_temporaries(root)
    assert not _left(root)


def test_new_folders_are_synced_into_those_above(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    real = os.fsync

    def fsync(file: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{file}"))
        real(file)

    monkeypatch.setattr(os, "fsync", fsync)
    root = tmp_path / "a" / "store"
    publish.ensure_store(root)
    with _begun(root, TABLE, "x") as out:
        record = out.commit()
    assert record
    inside = [root / top / name for top in ("runs", "commits") for name in ("", RUN)]
    assert {str(p) for p in (tmp_path, tmp_path / "a", root, *inside)} <= set(synced)


def test_a_record_that_comes_between_the_announcement_and_the_look(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from contextlib import contextmanager

    real = Publication._announced

    @contextmanager
    def late(self: Publication, place: str, new: commits.Record) -> object:  # type: ignore[misc]
        with real(self, place, new):
            if not (root / place).exists():
                with monkeypatch.context() as patch, _begun(root, TABLE, "x") as other:
                    patch.setattr(Publication, "_announced", real)
                    other.commit()
            yield

    with _begun(root, TABLE, "x") as out:
        monkeypatch.setattr(Publication, "_announced", late)
        record = out.commit()
    assert [record] == commits.records(root)
    with _begun(root, TABLE, "x") as again:
        monkeypatch.setattr(Publication, "_announced", real)
        assert again.commit() == record, "the existing record is returned"


def test_a_damaged_record_is_removed_only_from_where_records_lie(root: Path) -> None:
    place = f"commits/{RUN}/fold/finish.json"
    (root / place).parent.mkdir(parents=True)
    (root / place).write_text("{")
    publish.remove_damaged(root, place)
    assert not (root / place).exists()
    with pytest.raises(UsageError, match="is no place of a commit record"):
        publish.remove_damaged(root, "manifest.json")


def test_a_damaged_announcement_counts_as_a_living_ones(root: Path) -> None:
    """Nobody knows whose it is: whoever meets it gives up, until it is a day old."""
    folder = root / "commits" / RUN / "fold"
    folder.mkdir(parents=True)
    announcement = folder / f"{intents.PREFIX}finish.json"
    announcement.write_text("{")
    with pytest.raises(DisagreementError, match="unreadable"), _begun(root, TABLE, "x") as out:
        out.commit()
    os.utime(announcement, (0, 0))
    housekeeping.remove_stale_temporaries(root)
    with _begun(root, TABLE, "x") as out:
        out.commit()


def test_an_announcement_that_goes_while_it_is_looked_at(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = root / "commits" / RUN / "fold"
    folder.mkdir(parents=True)
    announcement = folder / f"{intents.PREFIX}finish.json"
    announcement.write_text("{}")
    real = intents._read

    def read(path: Path) -> tuple[str, str]:
        path.unlink()
        return real(path)

    monkeypatch.setattr(intents, "_read", read)
    with _begun(root, TABLE, "x") as out:
        out.commit()
    assert not _left(root)


def test_processes_that_may_not_be_asked_count_as_living(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(process: int, signal: int) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "kill", forbidden)
    assert intents.is_living(f"{intents.host()}~1")
    assert intents.is_living("elsewhere~1")
