"""A run of four pictures through every stage, with the store as it is before and after each of them."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from pipeline import driver
from pipeline.config import Config, parse_config
from pipeline.job import Job
from pipeline.job.spec import Spec
from pipeline.stages import STAGES
from support.torture.injector import forked

PICTURES = 4
_SPECS: dict[Config, Spec] = {}


def sections(folder: Path, **scan: Any) -> dict[str, Any]:
    return {
        "model": {"source": "python:support.torture.small_run:network", "layers": ["1", "4"], "name": "plain"},
        "dataset": {"source": f"folder:{folder / 'pictures'}", "name": "few"},
        "scan": {"batch_size": 2, "shard_size": 2, "topk": 2, **scan},
        "examples": {"count": 2},
        "visualize": {"layers": ["1"], "units_per_layer": 1, "size": 32, "steps": 1, "batch": 1, "input": "canvas"},
        "compute": {"device": "cpu", "threads": 1},
    }


def network() -> tuple[nn.Module, dict[str, Any]]:
    """Make the network of the run: one map and the logits, of few units."""
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(3, 5, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 6))
    return layers, {"height": 32, "width": 32, "mean": [0.5] * 3, "std": [0.5] * 3}


def draw(folder: Path, pictures: int = PICTURES) -> None:
    """Draw the pictures; every third repeats an earlier one, so that there are ties."""
    for number in range(pictures):
        target = folder / "pictures" / f"class{number % 2}" / f"{number:04d}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(number - number % 3 % 2)
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), np.uint8)).save(target)


def run(folder: Path, root: Path, stage: str = "", **scan: Any) -> None:
    """Run one stage, or all. The network is opened once for all runs of a process and those that it forks."""
    job = Job(parse_config(sections(folder, **scan), "torture"), root, progress=False)
    kept = _SPECS.setdefault(job.spec.config, job.spec)
    vars(job.spec).update(vars(kept))
    driver.run(job, (stage,) if stage else ())


def snapshots(folder: Path) -> dict[str, tuple[Path, Path]]:
    """Run every stage once. Returns the stores before and after each.

    Autograd cannot be used by a process and then by those that it forks, so visualizations run in a forked one. The
    others run in this one, and what they have compiled and loaded is ready in all that follow.
    """
    draw(folder)
    made, before = {}, folder / "none"
    before.mkdir()
    for stage in STAGES:
        after = folder / f"after-{stage.name}"
        shutil.copytree(before, after)
        if stage.name == "visualize":
            assert forked(lambda after=after: run(folder, after, "visualize"), folder / "said") == 0  # type: ignore[misc]
        else:
            run(folder, after, stage.name)
        made[stage.name] = (before, after)
        before = after
    return made


def digests(root: Path) -> dict[str, str]:
    """Return what a store holds, without its logs."""
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.relative_to(root).parts[0] != "logs"
    }
