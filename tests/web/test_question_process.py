"""Questions by address run in a process of their own, which is stopped when its time is over."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest
from support import synthetic_store

from query.web.errors import PageError
from query.web.question_process import QuestionProcess


def test_an_answer_comes_and_an_error_keeps_its_status(tmp_path: Path) -> None:
    asked = QuestionProcess(synthetic_store.build(tmp_path / "store").root)
    rows = asked.ask("top_units", [("image", "7"), ("k", "3")])
    assert [row["rank"] for row in rows] == [1, 2, 3]
    for name, given, status in (
        ("nothing", [], 404),
        ("top_units", [("image", "99999")], 404),
        ("top_units", [], 400),
        ("top_units", [("image", "7"), ("image", "8")], 400),
        ("top_images", [("unit", "no unit")], 400),
    ):
        with pytest.raises(PageError) as caught:
            asked.ask(name, given)
        assert caught.value.status == status
    asked.close()


def test_a_question_that_takes_too_long_is_stopped_and_the_next_one_answered(tmp_path: Path) -> None:
    asked = QuestionProcess(synthetic_store.build(tmp_path / "store").root)
    given = [("image", "7"), ("k", "1")]
    asked.ask("top_units", given)
    assert asked._running is not None
    os.kill(asked._running[0].pid or 0, signal.SIGSTOP)  # it answers no more
    asked._seconds = 0.2
    began = time.monotonic()
    with pytest.raises(PageError, match="took longer than") as caught:
        asked.ask("top_units", given)
    assert caught.value.status == 503
    assert time.monotonic() - began < 30
    asked._seconds = 60
    assert asked.ask("top_units", given)
    asked.close()


def test_a_process_that_dies_is_said_and_started_again(tmp_path: Path) -> None:
    asked = QuestionProcess(synthetic_store.build(tmp_path / "store").root)
    given = [("image", "7"), ("k", "1")]
    asked.ask("top_units", given)
    assert asked._running is not None
    asked._running[0].kill()
    asked._running[0].join()
    with pytest.raises(PageError, match="somebody stopped it"):
        asked.ask("top_units", given)
    found = []
    visitors = [threading.Thread(target=lambda: found.append(asked.ask("top_units", given))) for _ in range(4)]
    for visitor in visitors:
        visitor.start()
    for visitor in visitors:
        visitor.join()
    assert len(found) == 4
    assert all(one == found[0] for one in found)
    asked.close()
