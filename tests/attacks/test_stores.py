"""Stores made to reach outside themselves. Each is refused in one line, and nothing outside changes."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from support import synthetic_store

import query
from pipeline.commands import repair
from query.presentation.formats import rows_text
from store import commits, export, logs, publish, verify
from store.errors import UsageError, printable
from unitscope import cli

RUN = "toy@shapes"
Change = Callable[[dict[str, Any]], None]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("good") / "store"
    synthetic_store.build(root)
    return root


@pytest.fixture
def home(good: Path, tmp_path: Path) -> Path:
    """A folder of the victim, with the hostile store in it."""
    shutil.copytree(good, tmp_path / "home" / "store")
    (tmp_path / "home" / "precious.json").write_text("precious")
    return tmp_path / "home"


def _outside(home: Path) -> dict[str, bytes]:
    found = [p for p in home.rglob("*") if p.is_file() and p.relative_to(home).parts[0] not in ("store", "copy")]
    return {str(p.relative_to(home)): p.read_bytes() for p in found}


def _changed(home: Path, change: Change, stage: str = "fold") -> None:
    """Change a commit record, and seal it and the manifest again, as an attacker would."""
    path = home / "store" / "commits" / RUN / stage / "all.json"
    body = json.loads(path.read_text())
    body.pop("seal")
    change(body)
    path.write_text(commits.sealed(body))


def _file(path: object, **other: object) -> Change:
    return lambda body: body["files"].append({"path": path, "size": 8, "sha256": "0" * 64} | other)


def _set(name: str, value: object) -> Change:
    return lambda body: body.__setitem__(name, value)


RECORDS: dict[str, Change] = {
    "parent": _file("runs/../../precious.json"), "absolute": _file("/etc/hostname"), "top": _file("manifest.json"),
    "elsewhere": _file("logs/x.jsonl"), "empty part": _file("runs//x"), "dot": _file("runs/./x"),
    "nul": _file("runs/a\0b"), "escape": _file("runs/\x1b[2J"), "no text": _file(7), "null": _file(None),
    "negative": _file("runs/x", size=-1),
    "a truth": _file("runs/x", size=True), "no digest": _file("runs/x", sha256="x"), "a list": _set("files", "runs/x"),
    "no file": lambda body: body["files"].append("runs/x"), "run": _set("run", "../../planted@x"),
    "run of parts": _set("run", "toy@../shapes"), "stage": _set("stage", "../fold"),
    "unknown stage": _set("stage", "melt"),
    "shard": _set("shard", "../../../../precious"), "other shard": _set("shard", "finish"), "number": _set("shard", 3),
    "facts": _set("facts", []), "fingerprint": _set("fingerprint", 5),
}  # fmt: skip


@pytest.mark.parametrize("name", RECORDS)
def test_a_record_that_names_something_else_is_refused(name: str, home: Path) -> None:
    before = _outside(home)
    _changed(home, RECORDS[name])
    with pytest.raises(UsageError, match="is damaged") as error:
        commits.records(home / "store")
    assert "\n" not in str(error.value)
    assert any("commits" in problem.path for problem in verify.verify(home / "store").problems)
    for command in (["status"], ["sql", "store", "SELECT 1"], ["export", "store", "--run", RUN, "--to", "copy"]):
        words = [command[0], *(command[1:] or ["store"])]
        words = [str(home / word) if word in ("store", "copy") else word for word in words]
        done = CliRunner().invoke(cli, words)
        assert isinstance(done.exception, UsageError), (words, done.output)
    assert _outside(home) == before


INDEX: dict[str, Change] = {
    "dataset": lambda body: body["facts"].__setitem__("dataset", "../../victim"),
    "no config": lambda body: body["facts"].__setitem__("config", ["[model]"]),
}


@pytest.mark.parametrize("name", INDEX)
def test_facts_of_another_type_or_dataset_are_refused(name: str, home: Path) -> None:
    _changed(home, INDEX[name], "index")
    with pytest.raises(UsageError, match="is damaged"):
        commits.records(home / "store")


@pytest.mark.parametrize("text", ["[" * 200_000, "{", "\0", "[]", "7"])
def test_a_record_that_is_no_record_is_refused(text: str, home: Path) -> None:
    (home / "store" / "commits" / RUN / "fold" / "all.json").write_text(text)
    with pytest.raises(UsageError, match="is damaged"):
        commits.records(home / "store")
    assert verify.verify(home / "store").problems


def test_a_record_that_never_ends_is_refused(home: Path) -> None:
    path = home / "store" / "commits" / RUN / "fold" / "all.json"
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(UsageError, match="not a regular file"):
        commits.records(home / "store")


LINKED = ("datasets", f"runs/{RUN}", f"runs/{RUN}/tables/units.parquet", f"commits/{RUN}", "commits")


@pytest.mark.parametrize("link", LINKED)
def test_a_link_in_a_store_is_refused(link: str, home: Path) -> None:
    store = home / "store"
    (home / "victim").mkdir()
    moved = home / "victim" / "moved"
    shutil.move(store / link, moved)
    (store / link).symlink_to(moved)
    before = _outside(home)
    with pytest.raises(UsageError, match="is a link, which can lead outside the store"):
        commits.records(store)
    assert any("is a link" in p.what or "gone" in p.what for p in verify.verify(store).problems)
    with pytest.raises(UsageError, match="is a link"):
        export.export(store, RUN, home / "copy")
    with pytest.raises(UsageError):
        repair.repair_store(store, model_code=True)
    assert _outside(home) == before


@pytest.mark.parametrize("path", ["runs/../x", "/x", "x", "runs/a/../../../x", ""])
def test_nothing_is_written_outside(path: str, home: Path) -> None:
    with publish.Publication(home / "store", RUN, "examples", "x", "f") as out, pytest.raises(UsageError):
        out.path(path)


def test_nothing_is_written_through_a_link(home: Path) -> None:
    (home / "victim").mkdir()
    (home / "store" / "runs" / RUN / "extra").symlink_to(home / "victim")
    out = publish.Publication(home / "store", RUN, "examples", "x", "f")
    with pytest.raises(UsageError, match="is a link"):
        out.path(f"runs/{RUN}/extra/x.h5")
    assert not list((home / "victim").iterdir())


def test_a_store_does_not_say_how_many_processes_repair_it(home: Path) -> None:
    text = '[model]\nsource = "python:a:b"\n[dataset]\nsource = "folder:x"\n[compute]\nworkers = 9\nthreads = 64\n'
    _changed(home, lambda body: body["facts"].__setitem__("config", text), "index")
    index = home / "store" / "commits" / RUN / "index"
    body = json.loads((index / "all.json").read_text()) | {"shard": "index"}
    (index / "index.json").write_text(commits.sealed({k: v for k, v in body.items() if k != "seal"}))
    config = repair.config_of(home / "store", RUN)
    assert (config.compute.workers, config.compute.threads, config.compute.gpus) == (1, 0, 0.0)


LINES = [
    "[" * 100_000, "{}", '{"event": []}', '{"event": "begin", "time": "x", "host": "a", "pid": 1}',
    '{"event": "begin", "time": 1e999, "host": "a", "pid": 1, "run": "r", "stage": "s", "shard": "t"}',
    '{"event": "plan", "time": 1, "host": "a", "pid": 1, "run": "r", "stage": "s", "phases": [null]}',
    '{"event": "plan", "time": 1, "host": "a", "pid": 1, "run": "r", "stage": {}, "phases": []}',
    '{"event": "done", "time": 1, "host": 5, "pid": true, "run": "r", "stage": "s", "shard": "t"}',
]  # fmt: skip


@pytest.mark.parametrize("line", LINES)
def test_a_line_of_a_log_that_is_no_event_is_left_out(line: str, home: Path) -> None:
    folder = home / "store" / "logs" / "shards"
    folder.mkdir(parents=True)
    (folder / "x.jsonl").write_text(line + "\n")
    assert logs.read(home / "store") == []
    done = CliRunner().invoke(cli, ["status", str(home / "store"), "--timings"])
    assert done.exit_code == 0, done.output


def test_a_log_that_never_ends_is_left_out(home: Path) -> None:
    folder = home / "store" / "logs" / "shards"
    folder.mkdir(parents=True)
    os.mkfifo(folder / "x.jsonl")
    assert logs.read(home / "store") == []


@pytest.mark.parametrize("gone", ["commits", f"commits/{RUN}/fold", f"commits/{RUN}/examples/all.json"])
def test_what_has_vanished_is_missed(gone: str, home: Path) -> None:
    path = home / "store" / gone
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    assert any("is gone" in problem.what for problem in verify.verify(home / "store").problems)
    with pytest.raises(UsageError, match=r"lists .* that (is|are) gone"):
        query.open(home / "store")
    done = CliRunner().invoke(cli, ["status", str(home / "store")])
    assert "that the manifest lists are gone" in done.output


def test_a_record_of_the_manifest_removes_nothing(home: Path) -> None:
    """The manifest's record has a path for a shard: `verify` must not hand it to `repair` as something to remove."""
    _changed(home, _set("shard", "../../../../precious"))
    publish.write_manifest(home / "store")
    before = _outside(home)
    with pytest.raises(UsageError):
        repair.repair_store(home / "store", model_code=True)
    assert _outside(home) == before
    with pytest.raises(UsageError, match="no place of a commit record"):
        publish.remove_damaged(home / "store", f"commits/{RUN}/fold/../../../../precious.json")


def test_a_vanished_record_comes_back_from_the_manifest(home: Path, good: Path) -> None:
    place = f"commits/{RUN}/fold/all.json"
    (home / "store" / place).unlink()
    assert "from the manifest" in repair.repair_store(home / "store")
    assert (home / "store" / place).read_bytes() == (good / place).read_bytes()
    (home / "store" / place).write_text("{")
    assert "from the manifest" in repair.repair_store(home / "store")
    assert (home / "store" / place).read_bytes() == (good / place).read_bytes()


def test_no_text_of_a_store_reaches_the_terminal_as_it_is(home: Path) -> None:
    nasty = "\x1b]0;owned\x07\x9b2J\u202e\udcff"
    assert printable(f"a{nasty}\nb ü猫") == "a\\x1b]0;owned\\x07\\x9b2J\\u202e\\udcff\nb ü猫"
    text = rows_text(["n\x1b"], [["x\x1b[2J"]], "table")
    assert "\x1b" not in text
    assert "x\\x1b[2J" in text
    stranger = home / "store" / "runs" / RUN / "a\x1b[2Jb"
    stranger.write_text("")
    done = CliRunner().invoke(cli, ["verify", str(home / "store")])
    assert done.exit_code == 1
    assert "\x1b" not in done.output
    assert "a\\x1b[2Jb" in done.output


@pytest.mark.parametrize(
    ("stage", "facts", "says"),
    [
        ("scan", {"rejected": 5}, "no list of numbers with reasons"),
        ("scan", {"rejected": [[1, 2]]}, "no list of numbers with reasons"),
        ("scan", {"rejected": [["1", "x"]]}, "no list of numbers with reasons"),
        ("index", {"config": 5}, "'config' is no text"),
        ("index", {"dataset": "other"}, "is not that of its run"),
    ],
)
def test_facts_that_later_stages_cannot_read(tmp_path: Path, stage: str, facts: dict[str, Any], says: str) -> None:
    publish.ensure_store(tmp_path)
    with publish.Publication(tmp_path, "toy@shapes", stage, "all", "f") as out:
        out.commit(facts)
    with pytest.raises(UsageError, match=says):
        commits.records(tmp_path)


def test_a_record_whose_text_was_changed(tmp_path: Path) -> None:
    publish.ensure_store(tmp_path)
    with publish.Publication(tmp_path, "toy@shapes", "fold", "all", "f") as out:
        out.commit({"x": 1})
    place = tmp_path / "commits" / "toy@shapes" / "fold" / "all.json"
    place.write_text(place.read_text().replace('"x": 1', '"x": 2'))
    with pytest.raises(UsageError, match="is not what was written"):
        commits.records(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", "{}", "[" * 100_000, '{"format": 3}'])
def test_a_manifest_that_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(UsageError, match=r"cannot be read|is a store of format"):
        publish.check_version(tmp_path)
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(UsageError, match="is no unitscope store"):
        publish.check_version(tmp_path)
