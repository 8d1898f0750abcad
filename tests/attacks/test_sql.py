"""Hostile SQL, in this process, in the isolated one (the default) and through the command.

Nothing is written, nothing outside is read, and whatever takes too long or too much is stopped. The store's files are
compared byte for byte.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import ROOT, synthetic_store
from support.synthetic_store import Synthetic

import query
from query.scope import Scope
from query.sql.database import Limits
from store.errors import UsageError

HOSTILE = [
    "COPY units TO 'out.csv'",
    "COPY (SELECT 1) TO '{recorded}'",
    "EXPORT DATABASE 'out'",
    "ATTACH 'out.db'",
    "ATTACH '{outside}' AS other",
    "PRAGMA database_list",
    "PRAGMA enable_profiling",
    "SET threads = 1",
    "RESET enable_external_access",
    "SET enable_external_access = true",
    "INSTALL httpfs",
    "LOAD httpfs",
    "CREATE TABLE t AS SELECT 1",
    "CREATE VIEW units AS SELECT 1",
    "DROP VIEW units",
    "INSERT INTO units SELECT * FROM units",
    "CALL enable_logging()",
    "CHECKPOINT",
    "SELECT 1; SELECT 2",
    "SELECT 1; DROP VIEW units",
    "EXPLAIN ANALYZE SELECT 1",
    "BEGIN",
    "",
    "SELECT * FROM read_text('/etc/passwd')",
    "SELECT * FROM read_blob('/etc/passwd')",
    "SELECT * FROM read_csv('/etc/passwd')",
    "SELECT * FROM read_csv('{outside}')",
    "SELECT * FROM '{outside}'",
    "SELECT * FROM glob('/etc/*')",
    "SELECT * FROM glob('{folder}/*')",
    "SELECT * FROM read_parquet('{unrecorded}')",
    "SELECT * FROM read_parquet('{folder}/../*/*.parquet')",
    "SELECT * FROM read_parquet('http://127.0.0.1:1/x.parquet')",
    "SELECT * FROM sniff_csv('/etc/passwd')",
    "SELECT * FROM read_duckdb('{outside}')",
    "SELECT * FROM query('COPY units TO ''out.csv''')",
    "SELECT * FROM enable_logging(storage := 'file', storage_path := 'out')",
    "SELECT * FROM made",
    "SELECT * FROM sqlite_scan('out.db', 't')",
    "WITH gone AS (DELETE FROM units RETURNING *) SELECT * FROM gone",
    "SELECT * FROM read_json('/etc/passwd')",
    "SELECT * FROM read_ndjson_objects('{outside}')",
    "SELECT * FROM parquet_metadata('{unrecorded}')",
    "SELECT * FROM parquet_scan('{unrecorded}')",
    "SELECT * FROM read_csv('{folder}/../../../outside.csv')",
    "SELECT * FROM read_text('s3://bucket/key')",
    "SELECT * FROM delta_scan('{folder}')",
    "SELECT * FROM iceberg_scan('{folder}')",
    "SELECT * FROM postgres_scan('host=127.0.0.1', 'public', 't')",
    "SELECT getenv('HOME')",
    "SELECT * FROM query_table('nothing')",
    "SELECT nextval('units')",
    "PREPARE p AS SELECT 1",
    "EXECUTE p",
    "VACUUM",
    "USE main",
    "DETACH memory",
    "IMPORT DATABASE 'out'",
    "ALTER VIEW units RENAME TO gone",
    "UPDATE units SET dead = true",
    "TRUNCATE units",
    "CREATE MACRO top_units(a, b) AS TABLE SELECT 1",
    "CREATE SECRET s (TYPE s3)",
    "SET VARIABLE x = 1",
    "SET GLOBAL memory_limit = '100GB'",
    "COPY FROM DATABASE memory TO other",
    "COMMENT ON VIEW units IS 'mine'",
    "SELECT 1 INTO OUTFILE 'out'",
    "/* SELECT */ ATTACH ':memory:' AS more",
    "SELECT '" + "x" * 200_000 + "'",
    "SELECT " + "(" * 5000 + "1" + ")" * 5000,
    "SELECT " + " + ".join(["1"] * 20_000),
]

BOMBS = [
    "WITH RECURSIVE r(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM r) SELECT count(*) FROM r",
    "WITH RECURSIVE r(x) AS (SELECT 'a' UNION ALL SELECT x || x FROM r) SELECT count(*) FROM r",
    "SELECT count(*) FROM range(10000000) a, range(10000000) b WHERE (a.range * b.range) % 7 = 3",
    "SELECT count(*) FROM tail a, tail b, tail c, tail d, tail e WHERE a.value + b.value + c.value + d.value = e.value",
    "SELECT md5(repeat('a', 4000000000))",
    "SELECT length(repeat('abc', 1000000000))",
    "SELECT lpad('', 2147483647, 'x')",
    "SELECT printf('%1000000000d', 1)",
    "SELECT levenshtein(repeat('ab', 100000), repeat('ba', 100000))",
    "SELECT max(levenshtein(repeat(path, 3000), repeat(sha256, 3000))) FROM images",
    "SELECT regexp_matches(repeat('a', 1000000000), '(a*)*(a*)*b')",
    "SELECT len(list_sort(range(300000000)))",
    "SELECT list(range) FROM range(10000000000)",
    "SELECT range FROM range(1000000000) ORDER BY hash(range)",
    "SELECT count(*) FROM unit_row('head:1') i, image_row(i.image_id), image_row(i.image_id), image_row(i.image_id)",
    "SELECT * FROM range(100000000)",
]


def fingerprint(folder: Path) -> dict[str, str]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Synthetic]:
    """A store that is the same at the end, whatever was asked in between."""
    made = synthetic_store.build(tmp_path_factory.mktemp("hostile") / "store")
    folder = made.root / "datasets" / made.dataset
    (folder / "unrecorded.parquet").write_bytes((folder / "images.parquet").read_bytes())
    before = fingerprint(made.root)
    yield made
    assert fingerprint(made.root) == before


@pytest.fixture(scope="module", params=[False, True], ids=["here", "isolated"])
def scope(made: Synthetic, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scope]:
    """Both work in an empty folder of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.chdir(tmp_path_factory.mktemp("cwd"))
        with query.open(made.root, limits=Limits(seconds=5, answer=64 << 20, isolated=request.param)) as opened:
            yield opened


def placed(text: str, made: Synthetic, outside: Path) -> str:
    folder = made.root / "datasets" / made.dataset
    names = {
        "outside": outside, "recorded": folder / "images.parquet", "folder": folder,
        "unrecorded": folder / "unrecorded.parquet",
    }  # fmt: skip
    for key, path in names.items():
        text = text.replace("{" + key + "}", str(path))
    return text


@pytest.mark.parametrize("text", HOSTILE, ids=[text[:60] for text in HOSTILE])
def test_hostile_sql_fails_in_one_line_and_writes_nothing(
    made: Synthetic, scope: Scope, tmp_path: Path, text: str
) -> None:
    (tmp_path / "outside.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UsageError) as caught:
        scope.sql(placed(text, made, tmp_path / "outside.csv"))
    assert str(caught.value).startswith("SQL: ")
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["outside.csv"]
    assert not list(Path.cwd().iterdir())
    assert scope.sql("SELECT count(*) FROM units").fetchone() == (18,), "the scope must still answer"


@pytest.fixture(scope="module")
def small(made: Synthetic) -> Iterator[Scope]:
    limits = Limits(seconds=0.5, memory=256 << 20, answer=8 << 20)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        with query.open(made.root, limits=limits) as opened:
            yield opened


@pytest.mark.parametrize("text", BOMBS, ids=[text[:60] for text in BOMBS])
def test_bombs_are_stopped(small: Scope, text: str) -> None:
    """The child answers that it is too much, or it is killed: a test that hangs here is the failure."""
    with pytest.raises(UsageError, match=r"stopped after|needs more than|not enough memory|larger than|time for this"):
        small.sql(text)
    assert small.sql("SELECT count(*) FROM units").fetchone() == (18,), "the next question is answered"


def test_the_isolated_process_cannot_write(made: Synthetic, tmp_path: Path) -> None:
    """Even where DuckDB would: a process confined as the child is opens a file and is refused the first byte."""
    code = (
        "import sys, signal\n"
        "from query.sql.database import Limits\n"
        "from query.sql_child import confine\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "confine(Limits())\n"
        "open(sys.argv[1], 'wb', buffering=0).write(b'x')\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert "File too large" in done.stderr
    assert (tmp_path / "out").stat().st_size == 0


def test_answers_of_both_processes_are_equal(made: Synthetic, scope: Scope) -> None:
    with query.open(made.root) as plain:
        for text in ("SELECT * FROM units", "FROM top_units(7, 5)", "FROM image_row(8)", "SELECT 1 AS a, NULL AS b"):
            assert scope.sql(text).arrow().to_pylist() == plain.sql(text).arrow().to_pylist()
        rows = scope.sql("SELECT path FROM images WHERE image_id = ?", [3]).fetchall()
        assert rows == plain.sql("SELECT path FROM images WHERE image_id = 3").fetchall()


COMMANDS = [HOSTILE[0], "SELECT 1; DROP VIEW units", "SELECT * FROM read_text('/etc/passwd')", BOMBS[4]]


@pytest.mark.parametrize("text", COMMANDS)
def test_the_command_refuses_too(made: Synthetic, tmp_path: Path, text: str) -> None:
    command = [sys.executable, str(ROOT / "unitscope.py"), "sql", str(made.root), text, "--seconds", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("unitscope: SQL: ")
    assert len(done.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())
