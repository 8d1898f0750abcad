"""The walk through the page in a real browser: by mouse, by keyboard, with a dropped picture, in special places."""

from __future__ import annotations

import re
from pathlib import Path

from playwright.sync_api import Route, expect
from support import synthetic_store
from support.page import Watched, serving
from web.conftest import DemoPage

LAYER = "blocks.5.2.bn1"


def test_the_walk_by_mouse(demo_page: DemoPage, watched: Watched) -> None:
    page, scope = watched.page, demo_page.scope
    page.goto(f"{demo_page.address}/")
    expect(page.locator(".strip img")).to_have_count(8)
    page.get_by_role("link", name="tf_efficientnet_lite0 on demo").click()

    expect(page.locator("a[data-layer]")).to_have_count(50)
    page.locator('a[data-layer="blocks.4.1.bn1"]').hover()
    expect(page.locator(".peek h2")).to_have_text("blocks.4.1.bn1")
    page.locator(f'a[data-layer="{LAYER}"]').hover()
    expect(page.locator(".peek h2")).to_have_text(LAYER)
    expect(page.locator(".peek a.unit")).to_have_count(2)  # so many are rendered
    page.locator(f'a[data-layer="{LAYER}"]').click()

    expect(page.locator("h1")).to_have_text(LAYER)
    expect(page.locator(".grid a.unit")).to_have_count(1152)
    page.locator(".grid a.unit").nth(3).click()

    expect(page.locator("h1")).to_have_text(f"{LAYER}:3")
    top = scope.top_images(f"{LAYER}:3", 9)
    shown = page.locator(".nine figure")
    expect(shown).to_have_count(9)
    first = top.iloc[0]
    expect(shown.first).to_contain_text(first["label"] or first["path"].rpartition("/")[2])
    expect(shown.first.locator(".heat")).to_be_visible()
    shown.first.locator("a").click()

    expect(page.locator("h1")).to_have_text(first["label"] or first["path"].rpartition("/")[2])
    likeliest = scope.sql(f"SELECT label FROM predictions WHERE image_id = {first['image_id']} AND rank = 1").fetchone()
    assert likeliest is not None
    expect(page.locator(".predictions li").first).to_contain_text(likeliest[0])
    page.locator("a.unit[data-map]").first.hover()
    expect(page.locator(".large .heat")).to_be_visible(timeout=60_000)  # the model is opened for it
    page.get_by_role("link", name=f"class {first['label']}").click()

    expect(page.locator("h1")).to_have_text(first["label"])
    expect(page.get_by_text("By z of the class mean")).to_be_visible()  # a class of one photograph has no AUC


def test_the_walk_by_keyboard_alone(demo_page: DemoPage, watched: Watched) -> None:
    page = watched.page
    page.goto(f"{demo_page.address}/")
    watched.tab_to(".run h2 a")
    page.keyboard.press("Enter")
    page.wait_for_url(demo_page.home)

    watched.tab_to('a[data-layer="blocks.0.0.bn1"]')
    expect(page.locator(".peek h2")).to_have_text("blocks.0.0.bn1")
    page.keyboard.press("Enter")
    expect(page.locator("h1")).to_have_text("blocks.0.0.bn1")
    page.keyboard.press("j")
    following = [layer.name for layer in demo_page.scope.records[demo_page.run].run.layers]
    after = following[following.index("blocks.0.0.bn1") + 1]
    expect(page.locator("h1")).to_have_text(after)
    page.keyboard.press("k")
    expect(page.locator("h1")).to_have_text("blocks.0.0.bn1")

    watched.tab_to(".grid a.unit")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    expect(page.locator("h1")).to_have_text("blocks.0.0.bn1:2")
    page.keyboard.press("ArrowRight")
    expect(page.locator("h1")).to_have_text("blocks.0.0.bn1:3")

    watched.tab_to(".nine figure a")
    page.keyboard.press("Enter")
    page.wait_for_url(re.compile(r"/-/image/\d+/"))
    watched.tab_to("a.unit[data-map]")
    expect(page.locator(".large .heat")).to_be_visible(timeout=60_000)
    page.go_back()
    watched.tab_to("td a")
    page.keyboard.press("Enter")
    page.wait_for_url(re.compile(r"/-/class/\d+/"))


def test_a_click_on_the_picture_lists_the_units_at_that_place(demo_page: DemoPage, watched: Watched) -> None:
    page = watched.page
    page.goto(f"{demo_page.home}-/image/4/?layer={LAYER}")
    page.locator(".large").click(position={"x": 30, "y": 30})
    page.wait_for_url(re.compile("across="), timeout=60_000)
    expect(page.locator("#place a.unit").first).to_be_visible()
    expect(page.locator(".large .frame")).to_be_visible()


def test_why_one_class_and_not_another(demo_page: DemoPage, watched: Watched) -> None:
    page, path = watched.page, "foolbox/data/imagenet_16_251.jpg"
    row = demo_page.scope.sql(f"SELECT image_id FROM images WHERE path = '{path}'").fetchone()
    assert row is not None
    page.goto(f"{demo_page.home}-/image/{row[0]}/?layer=blocks.6.0.bn3")
    page.select_option("select[name=against]", label="jaguar")
    page.get_by_role("button", name="Explain").click(timeout=120_000)
    page.wait_for_selector("#why h2", timeout=120_000)
    assert page.locator("#why h2").inner_text() == "Why dalmatian, and not jaguar?"
    assert page.locator("#why .attribution").first.locator("rect").count() > 10
    shown = page.locator("#why h3.for + .row8 .cap").all_inner_texts()
    found = demo_page.scope.explain(path, 251, 290, "blocks.6.0.bn3", groups=0)
    assert shown == [f":{channel}" for channel in found.units["channel"][:8]]
    assert page.locator("#why .groups figure").count() == 4


def test_a_dropped_picture_gets_the_page_of_a_photograph(demo_page: DemoPage, watched: Watched, tmp_path: Path) -> None:
    from PIL import Image

    picture = tmp_path / "mine.png"
    gradient = Image.linear_gradient("L").resize((300, 260))
    Image.merge("RGB", (gradient, gradient.rotate(90).resize(gradient.size), gradient)).save(picture)
    page = watched.page
    page.goto(f"{demo_page.home}{LAYER}/3/")
    page.set_input_files('input[type="file"]', picture)
    page.wait_for_url(re.compile("/-/drop/"), timeout=60_000)
    expect(page.locator("h1")).to_have_text("Your picture")
    expect(page.locator(".predictions li")).to_have_count(5)
    rarest = demo_page.scope.top_units(picture, 1, layer=LAYER)["channel"][0]
    of_layer = page.locator(".of-layer").filter(has_text=LAYER)
    expect(of_layer.locator("a.unit").first).to_contain_text(f":{rarest}")

    # what is no picture is refused in a sentence, and the page stays
    page.set_input_files('input[type="file"]', {"name": "a.jpg", "mimeType": "image/jpeg", "buffer": b"no picture"})
    expect(page.get_by_role("dialog")).to_contain_text("not a picture in a known format")
    watched.said = [line for line in watched.said if "415" not in line]  # Chromium logs every failed request
    page.get_by_role("button", name="Close").click()


def test_a_picture_can_be_dragged_and_pasted(demo_page: DemoPage, watched: Watched) -> None:
    page = watched.page
    for event in ("drop", "paste"):
        page.goto(demo_page.home)
        page.evaluate(
            """async (kind) => {
                const canvas = document.createElement("canvas");
                canvas.width = canvas.height = kind === "drop" ? 64 : 96;
                canvas.getContext("2d").fillRect(8, 8, 30, 30);
                const blob = await new Promise((done) => canvas.toBlob(done, "image/png"));
                const data = new DataTransfer();
                data.items.add(new File([blob], "mine.png", { type: "image/png" }));
                const event = kind === "drop"
                    ? new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true })
                    : new ClipboardEvent("paste", { clipboardData: data, bubbles: true });
                document.body.dispatchEvent(event);
            }""",
            event,
        )
        page.wait_for_url(re.compile("/-/drop/"), timeout=60_000)
        expect(page.locator("h1")).to_have_text("Your picture")


def test_search_focuses_jumps_finds_and_suggests(demo_page: DemoPage, watched: Watched) -> None:
    page = watched.page
    page.goto(demo_page.home)
    page.keyboard.press("/")
    page.keyboard.type(f"{LAYER}:3")
    page.keyboard.press("Enter")
    expect(page.locator("h1")).to_have_text(f"{LAYER}:3")
    for typed, found in (
        ("dalmat", "dalmatian"),
        ("4.1.bn", "blocks.4.1.bn1"),
        ("astronaut", "skimage/data/astronaut.png"),
    ):
        page.keyboard.press("/")
        page.keyboard.press("Control+A")
        page.keyboard.type(typed)
        page.keyboard.press("Enter")
        expect(page.get_by_role("link", name=found, exact=True)).to_be_visible()
    page.goto(f"{demo_page.address}/-/search/?q=dalmation")
    expect(page.get_by_text("The nearest names:")).to_be_visible()
    expect(page.get_by_role("link", name="dalmatian", exact=True)).to_be_visible()


def test_a_bar_of_the_distribution_shows_its_photographs(demo_page: DemoPage, watched: Watched) -> None:
    page, unit = watched.page, f"{LAYER}:3"
    page.goto(f"{demo_page.home}{LAYER}/3/")
    last = demo_page.scope.distribution(unit).iloc[-1]
    page.locator(".histogram a").last.click()
    expect(page.locator("#between figure")).to_have_count(int(last["images"]))
    top = demo_page.scope.top_images(unit, 1).iloc[0]
    expect(page.locator("#between figure").first).to_contain_text(top["label"] or top["path"].rpartition("/")[2])


def test_a_dead_unit_says_so(demo_page: DemoPage, watched: Watched) -> None:
    page = watched.page
    row = demo_page.scope.sql(f"SELECT channel FROM units WHERE layer = '{LAYER}' AND dead LIMIT 1").fetchone()
    assert row is not None
    page.goto(f"{demo_page.home}{LAYER}/{row[0]}/")
    expect(page.locator(".facts .state")).to_have_text("dead")
    expect(page.get_by_text("It is zero at every position of all 42 photographs.")).to_be_visible()
    expect(page.get_by_text("Dead units are not rendered.")).to_be_visible()
    page.goto(f"{demo_page.home}{LAYER}/?show=dead")
    expect(page.get_by_text("never fired")).to_have_count(page.locator(".grid a.unit").count())


def test_a_signed_layer_shows_what_its_units_are_against(demo_page: DemoPage, watched: Watched) -> None:
    page, unit = watched.page, "blocks.5.1.add:5"
    page.goto(f"{demo_page.home}blocks.5.1.add/5/")
    lowest = demo_page.scope.top_images(unit, 6, lowest=True)
    expect(page.get_by_role("heading", name="What it is against")).to_be_visible()
    figures = page.locator("section").filter(has_text="What it is against").locator("figure")
    expect(figures).to_have_count(6)
    first = lowest.iloc[0]
    expect(figures.first).to_contain_text(first["label"] or first["path"].rpartition("/")[2])
    expect(page.get_by_text("unitscope render timm:tf_efficientnet_lite0 blocks.5.1.add:5")).to_be_visible()


def test_a_run_without_visualizations_and_one_still_scanned(watched: Watched, tmp_path: Path, cache: Path) -> None:
    synthetic_store.build(tmp_path / "store", stages=3)
    synthetic_store.build(tmp_path / "store", model="later", stages=1)
    page = watched.page
    with serving(tmp_path / "store", cache) as address:
        page.goto(f"{address}/")
        expect(page.get_by_text("This run has not folded")).to_be_visible()
        expect(page.get_by_role("link", name="later on shapes")).to_have_count(0)
        page.get_by_role("link", name="toy on shapes").click()
        expect(page.get_by_text("None is rendered: these are their strongest photographs.")).to_be_visible()
        page.locator('a[data-layer="stem.relu"]').click()
        expect(page.locator(".grid a.unit")).to_have_count(6)
        expect(page.locator(".grid .dead")).to_have_count(1)
        page.locator(".grid a.unit").first.click()
        expect(page.get_by_text("Not rendered yet.")).to_be_visible()
        expect(page.locator(".nine figure")).to_have_count(9)
        page.goto(f"{address}/later@shapes/")
        expect(page.get_by_text("still being scanned")).to_be_visible()
        watched.said = [line for line in watched.said if "404" not in line]


def test_the_page_shows_what_is_committed_meanwhile(watched: Watched, tmp_path: Path, cache: Path) -> None:
    """A page that is open while a run goes on shows the next stage by itself."""
    root = tmp_path / "store"
    synthetic_store.build(root, stages=2)
    page = watched.page
    with serving(root, cache) as address:
        page.goto(f"{address}/")
        expect(page.locator(".stages li.open b")).to_contain_text(["examples", "visualize"])
        synthetic_store.build(tmp_path / "whole", stages=4)
        _copy_rest(tmp_path / "whole", root)  # the page asks every three seconds
        shown = page.locator(".stages li").filter(has_text="visualize").locator(".count")
        expect(shown).to_have_text("1 shard", timeout=20_000)
        page.goto(f"{address}/toy@shapes/block.0.add/0/")
        expect(page.get_by_text("the value on its best photograph")).to_be_visible()
        page.goto("about:blank")  # it asks no more when the server ends


def _copy_rest(whole: Path, root: Path) -> None:
    """Publish what a store has more than another: files first, records last."""
    import shutil

    paths = sorted(path for path in whole.rglob("*") if path.is_file())
    for path in sorted(paths, key=lambda path: "commits" in path.parts):
        target = root / path.relative_to(whole)
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, target)


def test_an_answer_that_comes_late_does_not_replace_the_layer_that_is_shown(
    demo_page: DemoPage, watched: Watched
) -> None:
    page = watched.page
    held: list[Route] = []
    page.route("**/bn1/-/peek/", lambda route: held.append(route))  # noqa: PLW0108  (playwright marks the function)
    page.goto(demo_page.home)
    watched.tab_to('a[data-layer="bn1"]')
    expect(page.locator(".peek")).to_be_visible()
    page.wait_for_timeout(200)
    watched.tab_to('a[data-layer="blocks.0.0.bn1"]')
    expect(page.locator(".peek h2")).to_have_text("blocks.0.0.bn1")
    assert len(held) == 1
    with page.expect_response("**/bn1/-/peek/"):
        held[0].continue_()
    page.wait_for_timeout(300)
    expect(page.locator(".peek h2")).to_have_text("blocks.0.0.bn1")
