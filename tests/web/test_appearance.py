"""How the page looks: every page in light, dark and narrow, without a serious finding of axe-core.

The screenshots stay in the folder that UNITSCOPE_SHOTS names, or else with pytest's other temporary files.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pytest
from support.page import Watched, serious
from web.conftest import DemoPage

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext

PAGES = {
    "runs": "{address}/",
    "architecture": "{home}",
    "layer": "{home}blocks.2.1.bn1/",  # a small layer: axe-core looks at every element
    "layer-sorted": "{home}bn1/?sort=selectivity&show=living&class=dalmatian",
    "unit": "{home}blocks.5.2.bn1/0/",
    "unit-chosen-bar": "{home}blocks.5.2.bn1/0/?from=0&to=2#between",
    "unit-dead": "{home}blocks.5.2.bn1/{dead}/",
    "unit-signed": "{home}blocks.5.1.add/5/",
    "image": "{home}-/image/4/?layer=blocks.5.2.bn1",
    "image-why": "{home}-/image/4/?layer=blocks.6.0.bn3&why=1",
    "class": "{home}-/class/251/",
    "not-there": "{home}nowhere/",
    "search": "{address}/-/search/?q=bn1",
    "search-nothing": "{address}/-/search/?q=xyzzyx",
}
LOOKS: dict[str, tuple[Literal["light", "dark"], int, int]] = {
    "light": ("light", 1240, 900),
    "dark": ("dark", 1240, 900),
    "narrow": ("light", 380, 800),
}


@pytest.fixture(scope="module")
def looking(browser: Browser) -> Iterator[BrowserContext]:
    with browser.new_context() as context:
        yield context


@pytest.fixture(scope="module")
def shots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = os.environ.get("UNITSCOPE_SHOTS")
    path = Path(folder) if folder else tmp_path_factory.mktemp("shots")
    path.mkdir(parents=True, exist_ok=True)
    return path


@pytest.fixture(scope="module")
def dead(demo_page: DemoPage) -> int:
    row = demo_page.scope.sql("SELECT channel FROM units WHERE layer = 'blocks.5.2.bn1' AND dead LIMIT 1").fetchone()
    assert row is not None
    return int(row[0])


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_whole_quiet_and_accessible(
    looking: BrowserContext, name: str, demo_page: DemoPage, dead: int, shots: Path
) -> None:
    watched = Watched(looking.new_page())
    page = watched.page
    page.goto(PAGES[name].format(address=demo_page.address, home=demo_page.home, dead=dead), timeout=120_000)
    for look, (scheme, width, height) in LOOKS.items():
        page.emulate_media(color_scheme=scheme)
        page.set_viewport_size({"width": width, "height": height})
        page.wait_for_load_state("networkidle")
        page.screenshot(path=shots / f"{name}-{look}.png")
        assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth"), look
        broken = page.evaluate(
            "[...document.images].filter(i => i.complete && i.src && !i.naturalWidth).map(i => i.src)"
        )
        assert broken == [], look
        assert serious(page) == [], look
    watched.said = [line for line in watched.said if name != "not-there" or "404" not in line]
    watched.check()
    page.close()
