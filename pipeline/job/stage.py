"""What a stage is to the pipeline: its shards, and the function that computes one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from store.publish import Record

if TYPE_CHECKING:
    from pipeline.job.job import Job


@dataclass(frozen=True)
class Shard:
    """The unit of work, retry and resume.

    `first` and `last` bound a range of positions or units. `size` is the shard's share of the progress bar, in the
    unit of its stage.
    """

    name: str
    first: int = 0
    last: int = 0
    size: int = 1
    layer: str = ""


@dataclass(frozen=True)
class Stage:
    """How one of the stages of `store.stages` is computed.

    `phases` returns lists of shards; each list is finished before the next one begins. `run` computes one shard and
    commits it, calling its last argument with the progress made. `at_once` is the number of shards that run side by
    side in one process.
    """

    name: str
    unit: str  # of the progress bar
    phases: Callable[[Job], list[list[Shard]]]
    run: Callable[[Job, Shard, Callable[[int], None]], Record]
    at_once: Callable[[Job], int] = lambda _: 1
