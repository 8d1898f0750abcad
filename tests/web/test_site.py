"""A store that changes, breaks or holds several runs while it is served."""

from __future__ import annotations

import gc
import json
import os
import shutil
import threading
import time
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from support import synthetic_store
from support.page import ask, serving

import query
from query.presentation.formats import plain
from query.sql.database import Limits
from query.web.app import Application
from query.web.errors import PageError
from query.web.model_runs import ModelRuns
from query.web.site import LOOK_AGAIN, Site, committed
from store.errors import UsageError


def _threads() -> int:
    return len(os.listdir("/proc/self/task"))


def _open_and_ask(root: Path) -> None:
    scope = query.open(root, limits=Limits(isolated=False))
    scope.sql("SELECT count(*) FROM top_images('head:1', 3)")


def test_a_scope_that_is_let_go_leaves_nothing_behind(tmp_path: Path) -> None:
    """The page opens a store anew for every change. DuckDB's threads end when nobody has the scope any more."""
    made = synthetic_store.build(tmp_path / "store")
    _open_and_ask(made.root)
    gc.collect()
    before = _threads()
    for _ in range(6):
        _open_and_ask(made.root)
    gc.collect()
    assert _threads() <= before


def test_what_is_committed_changes_with_every_stage_and_with_other_records(tmp_path: Path) -> None:
    states = []
    for stages in (1, 2, 3, 4):
        root = tmp_path / f"{stages}"
        synthetic_store.build(root, stages=stages)
        states.append(committed(root))
        assert committed(root) == states[-1]
    shutil.copytree(tmp_path / "4", tmp_path / "other")
    assert len({*states, committed(tmp_path / "other")}) == 5


def test_a_store_that_breaks_while_it_is_served_is_shown_as_it_was(tmp_path: Path, cache: Path) -> None:
    made = synthetic_store.build(tmp_path / "store")
    with serving(made.root, cache) as address:
        assert ask(address, f"/{made.run}/head/1/")[0] == 200
        synthetic_store.build(made.root, model="other")
        record = made.root / "commits" / "other@shapes" / "fold" / "all.json"
        record.write_text("{")
        time.sleep(LOOK_AGAIN * 1.5)
        status, headers, body = ask(address, "/")
        assert status == 200
        assert b"What is shown is the store as it was before." in body
        assert "content-security-policy" in headers
        assert ask(address, f"/{made.run}/head/1/")[0] == 200
        assert json.loads(ask(address, "/index.json")[2])["trouble"]


@pytest.mark.parametrize("model", ["toy", "second"])
def test_the_lines_of_a_store_with_several_runs_name_the_run(tmp_path: Path, model: str) -> None:
    root = tmp_path / "store"
    synthetic_store.build(root)
    synthetic_store.build(root, model="second", seed=1)
    application = Application(root)
    run = f"{model}@shapes"
    with query.open(root, limits=Limits(isolated=False)) as scope:
        pages: list[Any] = [
            application.routes,
            _answer(application, "_unit", run=run, layer="block.0.add", channel="1"),
            _answer(application, "_layer", run=run, layer="stem.relu"),
            _answer(application, "_class", run=run, index="437"),
            _answer(application, "_image", run=run, image="7"),
            _answer(application, "_architecture", run=run),
        ][1:]
        for page in pages:
            for name, panel in page["panels"].items():
                if panel["sql"]:
                    answer = scope.sql(panel["sql"])
                    rows = [dict(zip(answer.columns, map(plain, row), strict=True)) for row in answer.fetchall()]
                    shown = [{key: value for key, value in row.items() if key != "rendered"} for row in panel["rows"]]
                    assert rows == shown, (page["page"], name)
    application.close()


def _answer(application: Application, name: str, **params: str) -> Any:
    request = mock.Mock(path_params=params, query_params={})
    return getattr(application, name)(request)


def test_odd_queries_and_origins_are_answered_with_all_headers(tmp_path: Path, cache: Path) -> None:
    made = synthetic_store.build(tmp_path / "store")
    with serving(made.root, cache) as address:
        for path, headers in (
            ("/?address=1&path=2", {}),
            (f"/{made.run}/head/1/?self=1&from=1e308&to=-1e308", {}),
            (f"/{made.run}/head/1/?from=-1e308&to=1e308", {}),
            ("/", {"Origin": "http://["}),
        ):
            status, sent, _ = ask(address, path, headers=headers)
            assert status == 200, path
            assert "content-security-policy" in sent
        assert ask(address, f"/{made.run}/-/drop/", "POST", b"x", {"Origin": "http://["})[0] == 403


def test_a_model_that_cannot_be_opened_is_tried_once_and_said(tmp_path: Path) -> None:
    made = synthetic_store.build(tmp_path / "store")
    site, models = Site(made.root), ModelRuns(model_code=True)
    dense = site.record(made.run)
    with mock.patch("query.live._open", side_effect=UsageError("package is not installed")) as opened:
        for _ in range(3):
            with pytest.raises(PageError, match="package is not installed"):
                models.maps(site.scope, dense, 0, dense.run.layers[0])
        assert opened.call_count == 1
    assert models.why_not(dense.run) == "package is not installed"
    site.close()


def test_a_model_is_opened_by_one_visitor_at_a_time(tmp_path: Path) -> None:
    made = synthetic_store.build(tmp_path / "store")
    at_once, most = [0], [0]

    class Slow:
        def __init__(self, dense: Any, model_code: bool) -> None:
            at_once[0] += 1
            most[0] = max(most[0], at_once[0])
            time.sleep(0.05)
            at_once[0] -= 1

    with query.open(made.root, limits=Limits(isolated=False)) as scope, mock.patch("query.live.Probe", Slow):
        run = scope.records[made.run].run
        found: list[Any] = []
        visitors = [threading.Thread(target=lambda: found.append(scope.probe(run))) for _ in range(5)]
        for visitor in visitors:
            visitor.start()
        for visitor in visitors:
            visitor.join()
    assert most == [1]
    assert len(found) == 5
    assert all(one is found[0] for one in found)
