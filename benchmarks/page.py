"""The page over ResNet-50's 22,720 units and 2,000 pictures, measured in Chromium and by readers on the loopback.

A layer of 2,048 units with no derived picture made yet: when the first tile is painted, bytes of the first view, tasks
of more than 50 ms while scrolling to the end. Then the server's time for pages of random units and for the
architecture, against the same answer made in this process without a server. Then 50 readers for 30 s, who each open a
page with its pictures and open the next one two seconds later, while one visitor drops pictures and another asks for
the most similar units of all layers, at the same pace.
"""

from __future__ import annotations

import http.client
import io
import os
import random
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import click
from bench import Bar, Report, options
from cases import folder_of_photographs, photographs
from PIL import Image

from pipeline import driver
from pipeline.config import parse_config
from pipeline.job import Job
from query.web.answers.unit import unit_page
from query.web.site import Site

READERS, SECONDS, THINK = 50, 30.0, 2.0
PACKAGES = ("torch", "starlette", "uvicorn", "jinja2", "pillow")
CHROMIUM = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
            "--disable-component-update", "--disable-sync")  # fmt: skip
# Runs in the page before anything else: the time at which the first tile has been decoded and a frame was shown.
FIRST_TILE = """
window.tasks = [];
new PerformanceObserver(list => { for (const e of list.getEntries()) tasks.push([e.startTime, e.duration]); })
  .observe({ type: "longtask", buffered: true });
const look = () => {
  const img = document.querySelector(".grid img");
  if (img && img.complete && img.naturalWidth) requestAnimationFrame(() => { window.firstTile = performance.now(); });
  else setTimeout(look, 4);
};
look();
"""


def make_store(folder: Path, network: str, images: int) -> Path:
    """Scan photographs; no feature visualization is rendered, so that tiles are made of photographs."""
    (folder / "photographs").mkdir()
    source = folder_of_photographs(folder / "photographs", images)
    body = {
        "model": {"source": network, "weights": "random:0"},
        "dataset": {"source": source, "name": "photographs"},
    }
    root = folder / "store"
    driver.run(Job(parse_config(body, "benchmark"), root), ("index", "calibrate", "scan", "fold", "examples"))
    return root


@contextmanager
def served(root: Path, cache: Path) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Serve the store by the command. Yields HOST:PORT and the process."""
    command = [sys.executable, "-m", "unitscope", "serve", str(root), "--port", "0"]
    environment = os.environ | {"XDG_CACHE_HOME": str(cache)}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stderr is not None
        found = re.search(r"http://(\S+)/", process.stderr.readline())
        assert found
        try:
            yield found[1], process
        finally:
            process.terminate()


def in_the_browser(address: str, path: str, rounds: int, cache: Path, report: Report) -> None:
    """Measure the page of a large layer."""
    from playwright.sync_api import sync_playwright

    first, heavy, sizes, longest = [], [], [], []
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=list(CHROMIUM))
        for _ in range(rounds):
            shutil.rmtree(cache / "unitscope" / "pictures", ignore_errors=True)
            context = browser.new_context(viewport={"width": 1240, "height": 900})
            page = context.new_page()
            page.add_init_script(FIRST_TILE)
            network = context.new_cdp_session(page)
            network.send("Network.enable")
            received = [0.0]
            network.on("Network.loadingFinished", lambda e, received=received: received.append(e["encodedDataLength"]))
            page.goto(f"http://{address}{path}", wait_until="commit")
            while not (shown := page.evaluate("window.firstTile || 0")):
                page.wait_for_timeout(20)
            first.append(shown / 1e3)
            page.wait_for_load_state("networkidle")
            sizes.append(sum(received))
            began = page.evaluate("performance.now()")
            height = page.evaluate("document.documentElement.scrollHeight")
            page.mouse.move(600, 400)
            for _ in range(height // 400 + 1):
                page.mouse.wheel(0, 400)
                page.wait_for_timeout(16)
            page.wait_for_load_state("networkidle")
            tasks = [duration for start, duration in page.evaluate("tasks") if start >= began]
            heavy.append(len(tasks))
            longest.append(max(tasks, default=0.0) / 1e3)
            context.close()
        browser.close()
    report.add("layer page, cold", "first tile painted", statistics.median(first), _spread(first))
    report.add(
        "layer page, scrolling to the end", "longest task over 50 ms", statistics.median(longest), _spread(longest)
    )
    report.notes.append(f"bytes on first view: {statistics.median(sizes) / 1e3:,.0f} kB")
    report.bars.append(Bar("layer page, cold: first tile painted, s", statistics.median(first), 0.4))
    report.bars.append(
        Bar("layer page: tasks over 50 ms while scrolling (median of rounds)", statistics.median(heavy), 0)
    )


def on_the_server(address: str, root: Path, count: int, report: Report) -> None:
    """Measure pages of units drawn at random, and the architecture."""
    site = Site(root)
    name, dense = next(iter(site.scope.records.items()))
    chance = random.Random(0)
    units = [(layer, chance.randrange(layer.channels)) for layer in chance.choices(dense.run.layers, k=count)]
    ours, alone = [], []
    for layer, channel in units:
        ours.append(_timed(address, f"/{name}/{layer.name}/{channel}/"))
        began = time.perf_counter()
        unit_page(*site.unit(name, layer.name, str(channel)))
        alone.append(time.perf_counter() - began)
    architecture = [_timed(address, f"/{name}/") for _ in range(max(count // 4, 3))]
    report.add("unit page", "server", statistics.median(ours), _spread(ours))
    report.add("unit page", "the answer alone", statistics.median(alone), _spread(alone))
    report.add("architecture", "server", statistics.median(architecture), _spread(architecture))
    report.bars.append(Bar("unit page: p50, s", statistics.median(ours), 0.12))
    report.bars.append(Bar("architecture: p50, s", statistics.median(architecture), 0.3))
    site.close()


@dataclass
class Reading:
    """What readers found: seconds of each request, and what went wrong."""

    seconds: list[float] = field(default_factory=list)
    dropped: list[float] = field(default_factory=list)
    asked: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


def with_readers(address: str, root: Path, seconds: float, report: Report) -> None:
    site = Site(root)
    name, dense = next(iter(site.scope.records.items()))
    layers, images = dense.run.layers, dense.run.n
    reading, end = Reading(), time.monotonic() + seconds

    def get(path: str, into: list[float], method: str = "GET", body: bytes | None = None) -> bytes:
        began = time.perf_counter()
        try:
            status, data = _request(address, path, method, body)
        except OSError as error:
            reading.errors.append(f"{path}: {error}")
            return b""
        into.append(time.perf_counter() - began)
        if status not in (200, 303):
            reading.errors.append(f"{path}: {status}")
        return data

    def reader(number: int) -> None:
        chance = random.Random(number)
        time.sleep(chance.random() * THINK)
        while time.monotonic() < end:
            layer = chance.choice(layers)
            path = chance.choice([
                "/", f"/{name}/", f"/{name}/{layer.name}/",
                *3 * [f"/{name}/{layer.name}/{chance.randrange(layer.channels)}/"],
                f"/{name}/-/image/{chance.randrange(images)}/",
            ])  # fmt: skip
            html = get(path, reading.seconds).decode()
            shown = [one for one in re.findall(r'<img[^>]* src="([^"]+)"', html)[:8] if one.startswith("/")]
            for one in shown:
                get(one.replace("&amp;", "&"), reading.seconds)
            time.sleep(THINK)

    def visitor() -> None:
        chance = random.Random(1)
        while time.monotonic() < end:
            out = io.BytesIO()
            Image.effect_noise((256, 256), chance.uniform(10, 90)).convert("RGB").save(out, "JPEG")
            get(f"/{name}/-/drop/", reading.dropped, "POST", out.getvalue())
            time.sleep(THINK)

    def curious() -> None:
        chance = random.Random(2)
        while time.monotonic() < end:
            layer = chance.choice(layers)
            unit = f"{layer.name}:{chance.randrange(layer.channels)}"
            get(f"/-/api/similar_units/index.json?unit={unit}&layer=*&k=50", reading.asked)
            time.sleep(THINK)

    _request(address, f"/{name}/-/drop/", "POST", _some_picture())  # the model is open before the clock runs
    end = time.monotonic() + seconds
    threads = [threading.Thread(target=reader, args=(number,)) for number in range(READERS)]
    threads += [threading.Thread(target=visitor), threading.Thread(target=curious)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ordered = sorted(reading.seconds)
    p95 = ordered[int(0.95 * len(ordered))]
    report.add(
        f"{READERS} readers", "p50 of a request", statistics.median(ordered), f"p95 {p95:.3g}, of {len(ordered):,}"
    )
    for what, times in (("a dropped picture", reading.dropped), ("a slow question", reading.asked)):
        if times:
            report.add(what, "while they read", statistics.median(times), _spread(times))
    report.notes += [f"error: {one}" for one in reading.errors[:5]]
    report.bars.append(Bar(f"{READERS} readers: p95 of a request, s", p95, 1.0))
    report.bars.append(Bar(f"{READERS} readers: errors", len(reading.errors), 0))
    site.close()


def _some_picture() -> bytes:
    out = io.BytesIO()
    Image.linear_gradient("L").convert("RGB").save(out, "JPEG")
    return out.getvalue()


def _timed(address: str, path: str) -> float:
    began = time.perf_counter()
    status, _ = _request(address, path, "GET", None)
    assert status == 200, path
    return time.perf_counter() - began


def _request(address: str, path: str, method: str, body: bytes | None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(address, timeout=120)
    try:
        connection.request(method, path, body)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def _spread(values: list[float]) -> str:
    return f"{min(values):.3g} .. {max(values):.3g}"


@click.command(help=__doc__)
@click.option("--store", type=click.Path(path_type=Path, exists=True), help="A store of one run, made before.")
@options
def main(store: Path | None, quick: bool, json_file: str | None) -> None:
    report = Report("The page", ("what", "part", "seconds", "spread"))
    folder = Path(tempfile.mkdtemp(prefix="unitscope-page-"))
    try:
        network, images = ("torchvision:resnet18", 32) if quick else ("torchvision:resnet50", 2000)
        root = store or make_store(folder, network, images)
        site = Site(root)
        name, dense = next(iter(site.scope.records.items()))
        widest = max((layer for layer in dense.run.layers if layer.spatial), key=lambda layer: layer.channels)
        report.notes.append(f"{name}: {dense.run.units:,} units, {dense.run.n:,} photographs; {widest.name}")
        site.close()
        cache = folder / "cache"
        with served(root, cache) as (address, _):
            if shutil.which("chromium"):
                in_the_browser(address, f"/{name}/{widest.name}/", 2 if quick else 7, cache, report)
            else:
                report.notes.append("there is no Chromium here: what a browser shows was not measured")
            on_the_server(address, root, 8 if quick else 100, report)
            with_readers(address, root, 5 if quick else SECONDS, report)
    finally:
        shutil.rmtree(folder)
    raise SystemExit(report.finish(PACKAGES, f"0; photographs: {photographs()[1]}", json_file))


if __name__ == "__main__":
    main()
