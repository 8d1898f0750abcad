"""The interface of a stage: how it is divided into shards, and the function that computes one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from store.commits import Record
from store.stages import StageSpec, spec_of

if TYPE_CHECKING:
    from pipeline.graph import Layer
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
class Work:
    """What a whole stage computes, for estimates of its time.

    `images`: forward passes over images. `encoded`: pictures that are kept as JPEG. `positions`: of activation maps
    that are kept. `folded`: units that are folded over all images. `rendered`: the sizes of the batches of each shard
    of visualizations, with the shard's layer.
    """

    images: int = 0
    encoded: int = 0
    positions: int = 0
    folded: int = 0
    rendered: tuple[tuple[Layer, tuple[int, ...]], ...] = ()


@dataclass(frozen=True)
class Expected:
    """How many shards a stage will have, in its first phase and later, as estimated before its inputs exist.

    `exact` is False if rejected images or dead units may lower the number.
    """

    first: int
    later: int = 0
    exact: bool = True


def _accept(job: Job, done: Mapping[str, Record]) -> None:
    """Accept whatever was committed."""


def _may_rerun(job: Job, record: Record) -> None:
    """Let any shard be computed again."""


@dataclass(frozen=True)
class Stage:
    """The implementation of one of the stages of `store.stages`.

    `phases` returns lists of shards; each list is finished before the next one begins. `run` computes one shard and
    commits it, calling its last argument with the progress made. `expected` returns the number of shards before they
    can be listed. `work` returns what the stage computes, for estimates of time. `at_once` is the number of shards that
    run side by side in one process. `check` looks at what is committed after each phase, and raises UsageError to
    refuse it. `before_rerun` raises UsageError if `repair` must not compute a shard again.
    """

    name: str
    unit: str  # of the progress bar
    phases: Callable[[Job], list[list[Shard]]]
    run: Callable[[Job, Shard, Callable[[int], None]], Record]
    expected: Callable[[Job], Expected]
    work: Callable[[Job], Work] = lambda _: Work()
    at_once: Callable[[Job], int] = lambda _: 1
    check: Callable[[Job, Mapping[str, Record]], None] = _accept
    before_rerun: Callable[[Job, Record], None] = _may_rerun

    @property
    def spec(self) -> StageSpec:
        return spec_of(self.name)
