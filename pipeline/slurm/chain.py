"""Which jobs a run still needs: for each stage an array over the shares that lack shards, and a check behind it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pipeline.executors.readiness import is_complete, shard_names
from pipeline.job import Job
from pipeline.stages import STAGES, WITHOUT_NETWORK, stage_named
from pipeline.stages.visualize import shards_planned


@dataclass(frozen=True)
class Step:
    """One job. `words` follow `unitscope`; of an array, `indices` are the tasks and {index} stands for a task's own.

    It begins when the jobs `after` it have ended, well or not: what is missing then, a check finds.
    """

    name: str
    words: tuple[str, ...]
    after: tuple[str, ...] = ()
    indices: tuple[int, ...] = ()
    on_device: bool = False  # needs the GPU, where the run has one


@dataclass(frozen=True)
class Missing:
    """Of one stage's first phase, the shares I of N = `of` that lack shards."""

    shares: tuple[int, ...]
    of: int


CHECKS = {"scan": "scan-check", "fold": "fold-check"}


def steps(job: Job, array: int) -> list[Step]:
    """The chain from the first stage that is not complete to the end; empty where all is done."""
    left = {stage.name for stage in STAGES if not is_complete(job, stage)}
    found: list[Step] = []
    if not left:
        return found
    if "index" in left:
        found.append(Step("index", _run("index")))
    if "calibrate" in left:
        found.append(Step("calibrate", _run("index", "calibrate"), _names(found), on_device=True))
    for stage in ("scan", "fold"):
        if stage in left:
            before = _names(found[-1:])
            if (missing := missing_shares(job, stage, array)).shares:
                found.append(_array(stage, missing, before))
            found.append(Step(CHECKS[stage], ("slurm", "--check", stage), _names(found[-1:])))
    before = _names(found[-1:])
    arrays = [
        _array(stage, missing, before)
        for stage in ("examples", "visualize")
        if (missing := missing_shares(job, stage, array)).shares
    ]
    found += arrays
    return [*found, Step("finish", ("slurm", "--check", "finish"), _names(arrays) or before)]


def _run(*stages: str) -> tuple[str, ...]:
    return ("run", *(word for stage in stages for word in ("--stage", stage)))


def _names(found: Sequence[Step]) -> tuple[str, ...]:
    return tuple(step.name for step in found)


def _array(stage: str, missing: Missing, after: tuple[str, ...]) -> Step:
    words = (*_run(stage), "--shard", f"{{index}}/{missing.of}")
    return Step(stage, words, after, missing.shares, on_device=stage not in WITHOUT_NETWORK)


def missing_shares(job: Job, stage: str, array: int) -> Missing:
    """The shares of a stage's first phase to compute; all of them where its shards cannot be listed yet."""
    found = stage_named(stage)
    if shard_names(job, found) is None:
        share = max(1, min(array, _MOST[stage](job)))
        return Missing(tuple(range(share)), share)
    first = found.phases(job)[0]
    of = max(1, min(array, len(first)))
    done = set(job.store.done(stage))
    return Missing(tuple(sorted({i % of for i, shard in enumerate(first) if shard.name not in done})), of)


def _most_scans(job: Job) -> int:
    return -(-len(job.dataset.entries) // job.spec.config.scan.shard_size)


def _most_examples(job: Job) -> int:
    pictures = min(len(job.dataset.entries), int(job.spec.units.offsets[-1]) * job.spec.config.examples.count)
    return -(-pictures // job.spec.config.scan.shard_size)


def _most_visualizations(job: Job) -> int:
    return shards_planned(job) - 1  # without the finishing one


_MOST: dict[str, Callable[[Job], int]] = {
    "scan": _most_scans,
    "fold": lambda job: len(job.spec.layers),
    "examples": _most_examples,
    "visualize": _most_visualizations,
}


def unready(job: Job, check: str) -> str:
    """What must be committed when `check` begins and is not: of the first stage that lacks shards; "" where all is."""
    names = [stage.name for stage in STAGES]
    upto = names if check == "finish" else names[: names.index(check) + 1]
    own = ("examples", "visualize") if check == "finish" else (check,)  # whose later phases the check runs itself
    for stage in upto:
        if shard_names(job, stage_named(stage)) is None:
            return f"all shards of {stage}"
        phases = stage_named(stage).phases(job)
        wanted = {s.name for phase in (phases[:1] if stage in own else phases) for s in phase}
        if left := wanted - set(job.store.done(stage)):
            return f"{len(left)} shard(s) of {stage}"
    return ""
