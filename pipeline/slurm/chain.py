"""List the jobs that a run still needs: for each stage, an array over the shares that lack shards, and then a check."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.executors.readiness import is_complete, shard_names
from pipeline.job import Job
from pipeline.stages import STAGES, stage_named
from store import stages
from store.stages import StageSpec


@dataclass(frozen=True)
class Step:
    """One job.

    `words` are the arguments of `unitscope`. `indices` are the tasks of an array, and "{index}" in `words` stands for
    the index of each task. The job starts once the jobs named in `after` have ended, successfully or not; a check finds
    the shards that are still missing then.
    """

    name: str
    words: tuple[str, ...]
    after: tuple[str, ...] = ()
    indices: tuple[int, ...] = ()
    on_device: bool = False  # needs a GPU if the run uses one


@dataclass(frozen=True)
class Missing:
    """The shares I of N = `of` that lack shards in the first phase of a stage."""

    shares: tuple[int, ...]
    of: int


FINISH = "finish"  # the last check, after the stages that no other stage waits for


def check_name(check: str) -> str:
    """Return the name of the job that checks a stage, or of the last check."""
    return check if check == FINISH else f"{check}-check"


def steps(job: Job, array: int) -> list[Step]:
    """Return the chain of jobs from the first incomplete stage to the end, or an empty list if the run is complete."""
    left = [stage.spec for stage in STAGES if not is_complete(job, stage)]
    chain: list[Step] = []
    if not left:
        return chain
    for spec in left:
        if not spec.many:
            chain.append(Step(spec.name, _run(*spec.after, spec.name), _names(chain[-1:]), (), spec.needs_network))
        elif stages.is_gate(spec):
            if (missing := missing_shares(job, spec.name, array)).shares:
                chain.append(_array(spec, missing, _names(chain[-1:])))
            chain.append(Step(check_name(spec.name), ("slurm", "--check", spec.name), _names(chain[-1:])))
    before = _names(chain[-1:])
    arrays = [
        _array(spec, missing, before)
        for spec in stages.STAGES
        if spec.many and not stages.is_gate(spec) and (missing := missing_shares(job, spec.name, array)).shares
    ]
    chain += arrays
    return [*chain, Step(FINISH, ("slurm", "--check", FINISH), _names(arrays) or before)]


def _run(*stages: str) -> tuple[str, ...]:
    return ("run", *(word for stage in stages for word in ("--stage", stage)))


def _names(jobs: Sequence[Step]) -> tuple[str, ...]:
    return tuple(step.name for step in jobs)


def _array(spec: StageSpec, missing: Missing, after: tuple[str, ...]) -> Step:
    words = (*_run(spec.name), "--shard", f"{{index}}/{missing.of}")
    return Step(spec.name, words, after, missing.shares, on_device=spec.needs_network)


def missing_shares(job: Job, stage: str, array: int) -> Missing:
    """Return the shares of a stage's first phase that lack shards, or all if the shards cannot be listed yet.

    There are at most `array` shares.
    """
    implementation = stage_named(stage)
    if shard_names(job, implementation) is None:
        share = max(1, min(array, implementation.expected(job).first))
        return Missing(tuple(range(share)), share)
    first = implementation.phases(job)[0]
    of = max(1, min(array, len(first)))
    done = set(job.store.done(stage))
    return Missing(tuple(sorted({i % of for i, shard in enumerate(first) if shard.name not in done})), of)


def unready(job: Job, check: str) -> str:
    """Return what must be committed when `check` starts but is not: the shards of the first stage that lacks some.

    Returns "" if nothing is missing.
    """
    for stage in STAGES:
        if check != FINISH and not stages.NAMES.index(stage.name) <= stages.NAMES.index(check):
            break
        # A check itself runs the later phases of its own stage, and the last check those of the last stages.
        own = not stages.is_gate(stage.spec) if check == FINISH else stage.name == check
        if shard_names(job, stage) is None:
            return f"all shards of {stage.name}"
        phases = stage.phases(job)
        wanted = {s.name for phase in (phases[:1] if own else phases) for s in phase}
        if left := wanted - set(job.store.done(stage.name)):
            return f"{len(left)} shard(s) of {stage.name}"
    return ""
