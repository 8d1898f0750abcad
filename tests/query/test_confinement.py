"""How SQL from a person is confined: what the child process gives up, and how it ends."""

from __future__ import annotations

import io
import json
import os
import resource
import sys
from dataclasses import asdict, replace
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest
from support import synthetic_store

import query.sql_child
from query.sql import database, worker
from query.sql.database import Limits, Result
from query.sql.worker import SqlWorker, read_message, stream, write_message
from store.errors import UsageError


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthetic_store.build(tmp_path_factory.mktemp("store") / "store").root


def _child(
    monkeypatch: pytest.MonkeyPatch, root: Path, *questions: bytes, limits: Limits | None = None
) -> tuple[list[tuple[bool, bytes]], dict[int, tuple[int, int]]]:
    """Run the child's `main` in this process. Returns its answers and the limits that it set itself."""
    limits = replace(limits or Limits(), isolated=False)
    source, (reading, writing), given = io.BytesIO(), os.pipe(), {}
    write_message(source, True, json.dumps({"root": str(root), "code": False, "limits": asdict(limits)}).encode())
    for question in questions:
        write_message(source, True, question)
    source.seek(0)

    class Input:
        buffer = source

    monkeypatch.setattr(sys, "stdin", Input)
    monkeypatch.setattr(os, "dup", lambda _: writing)
    monkeypatch.setattr(os, "dup2", lambda *_: 0)
    monkeypatch.setattr(resource, "setrlimit", lambda what, limit: given.update({what: limit}))
    query.sql_child.main()
    monkeypatch.undo()
    answers = []
    with os.fdopen(reading, "rb") as out:
        while head := out.read(worker._HEAD.size):
            good, length = worker._HEAD.unpack(head)
            answers.append((good, out.read(length)))
    return answers, given


def _asking(text: str, *values: object) -> bytes:
    return bytes(worker._question(text, values))


def test_the_child_answers_and_gives_up_its_rights(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers, given = _child(
        monkeypatch, store, _asking("SELECT ? + 1 AS x", 41), _asking("DROP TABLE x"), _asking("SELECT nothing")
    )
    assert [good for good, _ in answers] == [True, True, False, False]
    assert pa.ipc.open_stream(answers[1][1]).read_all().to_pydict() == {"x": [42]}
    assert answers[2][1].startswith(b"SQL: exactly one SELECT is allowed")
    assert given[resource.RLIMIT_FSIZE] == (0, 0)
    assert given[resource.RLIMIT_CORE] == (0, 0)
    limits = Limits()
    assert limits.memory + limits.answer < given[resource.RLIMIT_AS][0] < limits.memory + limits.answer + (16 << 30)


def test_a_store_that_does_not_open_is_the_first_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers, given = _child(monkeypatch, tmp_path)
    assert [good for good, _ in answers] == [False]
    assert b"is no unitscope store" in answers[0][1]
    assert not given


def test_too_little_memory_is_an_answer(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(query.sql_child, "stream", fail)
    answers, _ = _child(monkeypatch, store, _asking("SELECT 1"))
    assert answers[1] == (False, b"SQL: not enough memory: ask for less at a time, or allow more")


def test_limits_that_the_system_refuses_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """macOS does not limit address space; a hard limit that is lower already stays."""
    given = {}

    def setrlimit(what: int, limit: tuple[int, int]) -> None:
        if what == resource.RLIMIT_AS:
            raise ValueError
        given[what] = limit

    monkeypatch.setattr(resource, "setrlimit", setrlimit)
    monkeypatch.setattr(resource, "getrlimit", lambda what: (5, 5))
    query.sql_child.confine(Limits())
    assert given == {resource.RLIMIT_FSIZE: (0, 0), resource.RLIMIT_CORE: (0, 0)}


def test_an_input_that_ends_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    class Input:
        buffer = io.BytesIO()

    monkeypatch.setattr(sys, "stdin", Input)
    monkeypatch.setattr(os, "dup2", lambda *_: 0)
    monkeypatch.setattr(os, "dup", lambda _: os.open(os.devnull, os.O_WRONLY))
    query.sql_child.main()
    assert read_message(io.BytesIO(b"xx")) is None


def test_a_child_that_dies_while_it_opens_the_store(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    asked = SqlWorker(store, Limits())
    with pytest.raises(UsageError, match="could not be opened"):
        asked.table("SELECT 1")
    asked.close()
    with pytest.raises(UsageError, match="was closed"):
        asked.table("SELECT 1")


def test_a_child_that_is_killed_is_started_again(store: Path) -> None:
    asked = SqlWorker(store, Limits(seconds=20))
    assert asked.table("SELECT 1 AS x").to_pydict() == {"x": [1]}
    assert asked._child is not None
    asked._child.kill()
    asked._child.wait()
    assert asked.table("SELECT 2 AS x").to_pydict() == {"x": [2]}
    asked.close()


def test_a_child_that_dies_over_a_question(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = SqlWorker(store, Limits(seconds=20))
    asked.table("SELECT 1")
    real = worker.write_message

    def killed(out: object, good: bool, body: object) -> None:
        assert asked._child is not None
        asked._child.kill()
        asked._child.wait()
        real(out, good, body)  # type: ignore[arg-type]

    monkeypatch.setattr(worker, "write_message", killed)
    with pytest.raises(UsageError, match="not enough memory, or somebody killed it"):
        asked.table("SELECT 1")
    asked.close()


def test_questions_that_are_none(store: Path) -> None:
    asked = SqlWorker(store, Limits())
    with pytest.raises(UsageError, match="the query is no text"):
        asked.table(5)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="a parameter is no value"):
        asked.table("SELECT ?", [object()])
    assert asked._child is None


def test_the_connection_is_locked(store: Path) -> None:
    with query.open(store, limits=Limits(isolated=False)) as scope:
        connection = scope._database.connection
        for text in (
            "SET enable_external_access = true", "SET lock_configuration = false", "INSTALL httpfs", "LOAD httpfs",
            "ATTACH '/tmp/x.db'", "COPY (SELECT 1) TO '/tmp/x.csv'", "SELECT * FROM read_csv('/etc/passwd')",
            "SELECT * FROM read_text('/etc/passwd')", "SELECT * FROM glob('/etc/*')", "SET memory_limit = '1TB'",
        ):  # fmt: skip
            with pytest.raises(duckdb.Error):
                connection.execute(text)


def test_results(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with query.open(store, limits=Limits(isolated=False)) as scope:
        found = scope.sql("SELECT range AS a, 1.5::DECIMAL(9, 2) AS b, (10::HUGEINT ** 30)::HUGEINT AS c FROM range(3)")
        assert repr(found) == "Result(3 rows: a, b, c)"
        assert (len(found), found.fetchone()) == (3, (0, 1.5, 1e30))
        assert [row[0] for row in found.fetchall()] == [1, 2]
        assert (found.fetchone(), found.fetchall()) == (None, [])
        assert found.pl()["b"].to_list() == [1.5] * 3
    assert Result(pa.table({})).fetchall() == []
    monkeypatch.setitem(sys.modules, "polars", None)
    with pytest.raises(UsageError, match="polars is not installed"):
        found.pl()


def test_limits_end_queries(store: Path) -> None:
    with query.open(store, limits=Limits(seconds=0.2, isolated=False)) as scope:
        with pytest.raises(UsageError, match=r"stopped after 0\.2 s"):
            scope.sql("SELECT count(*) FROM range(100000000) a, range(100000) b WHERE a.range % 7 = b.range % 5")
        with pytest.raises(UsageError, match="100,000 are allowed"):
            scope.sql("SELECT " + "1+" * database.LONGEST + "1")
    small = query.open(store, limits=Limits(memory=64 << 20, isolated=False))
    with small as scope, pytest.raises(UsageError, match=r"needs more than 0\.0625 GiB"):
        scope.sql("SELECT list(range) FROM range(100000000)")
    short = query.open(store, limits=Limits(answer=1 << 20, isolated=False))
    with short as scope, pytest.raises(UsageError, match="the answer is larger than 1 MiB"):
        scope.sql("SELECT * FROM range(10000000)")


def test_an_error_that_quotes_damaged_bytes(store: Path) -> None:
    with pytest.raises(UsageError, match="what was read is damaged"), database._explained("SQL"):
        b"\xb9".decode()


def test_bytes_survive_the_pipe() -> None:
    out = io.BytesIO()
    write_message(out, True, stream(pa.table({"x": [1, None]})))
    out.seek(0)
    body = read_message(out)
    assert body is not None
    assert pa.ipc.open_stream(body).read_all().to_pydict() == {"x": [1, None]}
