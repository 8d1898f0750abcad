"""How each stage of `store.stages` is computed. Each is idempotent, resumable by shard and safe to run twice at once.

For each declared stage, the module `pipeline.stages.NAME` holds `STAGE`. There is no other list of stages.
"""

from __future__ import annotations

import importlib

from pipeline.job import Stage
from store import stages as declared


def stage_named(name: str) -> Stage:
    """Return the implementation of a declared stage."""
    stage: Stage = importlib.import_module(f"pipeline.stages.{name}").STAGE
    return stage


STAGES: tuple[Stage, ...] = tuple(stage_named(name) for name in declared.NAMES)

__all__ = ["STAGES", "stage_named"]
