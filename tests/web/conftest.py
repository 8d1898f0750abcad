"""The demo's store and its page, one for all tests of a worker."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support.page import Watched, chromium, serving

import query
from query.sql.database import Limits

if TYPE_CHECKING:
    from playwright.sync_api import Browser

    from query.scope import Scope


@dataclass(frozen=True)
class DemoPage:
    """The page over the demo's store: its address, the run's name, and the store opened beside it."""

    address: str
    run: str
    scope: Scope

    @property
    def home(self) -> str:
        return f"{self.address}/{self.run}/"


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def demo_page(demo_store: Path, cache: Path) -> Iterator[DemoPage]:
    with (
        serving(demo_store, cache) as address,
        query.open(demo_store, limits=Limits(isolated=False)) as scope,
    ):
        yield DemoPage(address, next(iter(scope.records)), scope)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with chromium() as opened:
        yield opened


@pytest.fixture
def watched(browser: Browser) -> Iterator[Watched]:
    """A page of the browser; the test fails if anything was written to its console."""
    with browser.new_context(viewport={"width": 1240, "height": 900}) as context:
        watched = Watched(context.new_page())
        yield watched
        watched.check()
