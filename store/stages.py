"""The stages of a run, declared once: which stages each comes after, what it needs, and which shard completes it.

Everything that lists stages reads this declaration: help texts, `status`, `verify`, `plan`, `repair`, the chain of
Slurm jobs and the driver. How a stage is computed is in `pipeline/stages/`. This module imports nothing heavy.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class StageSpec:
    """One stage.

    `after` names the stages whose results it reads. `needs_network` says whether it runs the model, and so uses a GPU
    if there is one. `last` names the shard that completes the stage; it is empty if the stage is complete when all its
    shards are. `many` says whether it has many shards, which a cluster computes as an array of tasks. `consumer` is the
    (stage, shard) that reads its partials: once that shard is committed, the partials may have been removed.
    `shown_early` says whether the page shows its partials before that.
    """

    name: str
    about: str
    after: tuple[str, ...]
    needs_network: bool
    last: str
    many: bool = True
    consumer: tuple[str, str] | None = None
    shown_early: bool = False


STAGES = (
    StageSpec(
        "index", "list the images, with digests, sizes and classes",
        after=(), needs_network=False, last="index", many=False,
    ),
    StageSpec(
        "calibrate", "look at a sample before hours are spent on all images",
        after=("index",), needs_network=True, last="calibrate", many=False,
    ),
    StageSpec(
        "scan", "run the network once over every image and keep all statistics of all units",
        after=("index", "calibrate"), needs_network=True, last="", consumer=("fold", "finish"),
    ),
    StageSpec(
        "fold", "turn what the scan kept into the store's tables and arrays",
        after=("index", "scan"), needs_network=False, last="finish", consumer=("fold", "finish"),
    ),
    StageSpec(
        "examples", "keep the images that excite each unit most, with activation maps",
        after=("index", "fold"), needs_network=True, last="finish", consumer=("examples", "finish"),
    ),
    StageSpec(
        "connections", "find which units feed each unit, and how strongly, by the weights between them",
        after=("index", "fold"), needs_network=False, last="finish", consumer=("connections", "finish"),
    ),
    StageSpec(
        "visualize", "render feature visualizations, with metrics of how far to trust them",
        after=("index", "fold"), needs_network=True, last="finish", consumer=("visualize", "finish"), shown_early=True,
    ),
)  # fmt: skip

NAMES = tuple(stage.name for stage in STAGES)


def spec_of(name: str) -> StageSpec:
    """Return the declaration of a stage. Raises KeyError if there is none."""
    return _BY_NAME[name]


_BY_NAME = {stage.name: stage for stage in STAGES}


def is_gate(stage: StageSpec) -> bool:
    """Return whether other stages wait for this one."""
    return any(stage.name in other.after for other in STAGES)
