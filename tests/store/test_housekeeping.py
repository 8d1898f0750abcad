"""What housekeeping removes, and what it leaves alone."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from store import commits, housekeeping, intents, publish
from store.publish import Publication

RUN = "toy@shapes"
TABLE = f"runs/{RUN}/tables/x.parquet"
HOUR, DAY = 3600, 24 * 3600


@pytest.fixture
def root(tmp_path: Path) -> Path:
    publish.ensure_store(tmp_path / "store")
    with Publication(tmp_path / "store", RUN, "fold", "finish", "f") as out:
        out.path(TABLE).write_text("x")
        out.commit()
    return tmp_path / "store"


@pytest.fixture
def dead() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def _left(root: Path, owner: str, final: str, age: float = 0.0) -> Path:
    path = root / final
    path.parent.mkdir(parents=True, exist_ok=True)
    path = path.with_name(f"{intents.TEMPORARY}{owner}~00~{path.name}")
    path.write_text("half")
    os.utime(path, (time.time() - age, time.time() - age))
    return path


def test_temporaries_by_owner_and_age(root: Path, dead: int) -> None:
    other = f"runs/{RUN}/tables/other.parquet"
    here, elsewhere = intents.host(), "elsewhere"
    goes = [
        _left(root, f"{here}~{dead}", other),
        _left(root, f"{here}~{dead}", TABLE),
        _left(root, f"{elsewhere}~5", other, age=2 * DAY),
        _left(root, f"{elsewhere}~5", TABLE, age=2 * HOUR),
        _left(root, intents.own(), TABLE),
    ]
    stays = [
        _left(root, f"{here}~{os.getppid()}", other, age=2 * DAY),  # living, however old
        _left(root, f"{elsewhere}~6", other, age=2 * HOUR),
        _left(root, f"{elsewhere}~6", TABLE),
        _left(root, intents.own(), other),
    ]
    housekeeping.remove_orphans(root, RUN)
    assert [path.name for path in goes if path.exists()] == []
    assert [path.name for path in stays if not path.exists()] == []
    goes = [_left(root, f"{here}~{dead}", other), _left(root, f"{elsewhere}~5", other, age=2 * DAY)]
    housekeeping.remove_stale_temporaries(root)
    assert [path.name for path in goes if path.exists()] == []
    assert [path.name for path in stays if not path.exists()] == []


def test_ages_are_by_the_clock_of_the_file_system(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = _left(root, "elsewhere~5", TABLE)
    for jump in (-3 * DAY, 3 * DAY):
        monkeypatch.setattr(time, "time", lambda jump=jump: jump)
        housekeeping.remove_stale_temporaries(root)
        housekeeping.remove_orphans(root, RUN)
    assert written.exists()


def test_a_file_that_goes_meanwhile_is_no_error(root: Path, monkeypatch: pytest.MonkeyPatch, dead: int) -> None:
    _left(root, f"{intents.host()}~{dead}", TABLE)
    real = Path.rglob

    def gone(self: Path, pattern: str) -> list[Path]:
        found = list(real(self, pattern))
        for path in found:
            path.unlink()
        return found

    monkeypatch.setattr(Path, "rglob", gone)
    housekeeping.remove_stale_temporaries(root)


def test_announcements(root: Path, dead: int) -> None:
    folder = root / "commits" / RUN / "fold"
    done = folder / f"{intents.PREFIX}finish.json"
    open_ = folder / f"{intents.PREFIX}later.json"
    lost = folder / f"{intents.PREFIX}lost.json"
    for path, owner in ((done, "elsewhere~5"), (open_, "elsewhere~5"), (lost, f"{intents.host()}~{dead}")):
        path.write_text(f'{{"owner": "{owner}", "text": "x"}}')
    housekeeping.remove_orphans(root, RUN)
    assert (done.exists(), open_.exists(), lost.exists()) == (False, True, False)


def test_partials_go_once_and_again(root: Path) -> None:
    partials = root / "runs" / RUN / "partials"
    for stage in ("scan", "examples"):
        (partials / stage).mkdir(parents=True)
        (partials / stage / "0.h5").write_text("x")
    for _ in range(2):
        housekeeping.remove_partials(root, RUN, ["scan"])
        assert (partials / "examples").exists()
    for _ in range(2):
        housekeeping.remove_partials(root, RUN, ["examples"])
        assert not partials.exists()


def test_the_last_of_two_manifests_is_whole(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between what one run reads and what it writes, another commits a record and writes its own manifest."""
    real, late = publish.replace_text, [1]

    def replace(path: Path, text: str) -> None:
        if late:
            late.clear()
            with Publication(root, RUN, "fold", "late", "f") as out:
                out.commit()
        real(path, text)

    monkeypatch.setattr(publish, "replace_text", replace)
    publish.write_manifest(root)
    assert commits.vanished(root, []) == [f"commits/{RUN}/fold/{name}.json" for name in ("finish", "late")]


def test_a_record_that_goes_meanwhile_is_not_in_the_manifest(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, record = commits.places, root / "commits" / RUN / "fold" / "finish.json"

    def places(*of: object) -> list[str]:
        found = real(root)
        record.unlink(missing_ok=True)
        return found

    monkeypatch.setattr(commits, "places", places)
    publish.write_manifest(root)
    assert commits.vanished(root, []) == []
