"""Which jobs a run still needs: for each stage an array over the shares that lack shards, and a check behind it."""

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


FINISH = "finish"  # the last check, behind the stages that no other stage waits for


def check_name(check: str) -> str:
    """Return the name of the job that checks a stage, or the end."""
    return check if check == FINISH else f"{check}-check"


def steps(job: Job, array: int) -> list[Step]:
    """Return the chain from the first stage that is not complete to the end, or nothing if all is done."""
    left = [stage.spec for stage in STAGES if not is_complete(job, stage)]
    found: list[Step] = []
    if not left:
        return found
    for spec in left:
        if not spec.many:
            found.append(Step(spec.name, _run(*spec.after, spec.name), _names(found[-1:]), (), spec.needs_network))
        elif stages.is_gate(spec):
            if (missing := missing_shares(job, spec.name, array)).shares:
                found.append(_array(spec, missing, _names(found[-1:])))
            found.append(Step(check_name(spec.name), ("slurm", "--check", spec.name), _names(found[-1:])))
    before = _names(found[-1:])
    arrays = [
        _array(spec, missing, before)
        for spec in stages.STAGES
        if spec.many and not stages.is_gate(spec) and (missing := missing_shares(job, spec.name, array)).shares
    ]
    found += arrays
    return [*found, Step(FINISH, ("slurm", "--check", FINISH), _names(arrays) or before)]


def _run(*stages: str) -> tuple[str, ...]:
    return ("run", *(word for stage in stages for word in ("--stage", stage)))


def _names(found: Sequence[Step]) -> tuple[str, ...]:
    return tuple(step.name for step in found)


def _array(spec: StageSpec, missing: Missing, after: tuple[str, ...]) -> Step:
    words = (*_run(spec.name), "--shard", f"{{index}}/{missing.of}")
    return Step(spec.name, words, after, missing.shares, on_device=spec.needs_network)


def missing_shares(job: Job, stage: str, array: int) -> Missing:
    """The shares of a stage's first phase to compute; all of them where its shards cannot be listed yet."""
    found = stage_named(stage)
    if shard_names(job, found) is None:
        share = max(1, min(array, found.expected(job).first))
        return Missing(tuple(range(share)), share)
    first = found.phases(job)[0]
    of = max(1, min(array, len(first)))
    done = set(job.store.done(stage))
    return Missing(tuple(sorted({i % of for i, shard in enumerate(first) if shard.name not in done})), of)


def unready(job: Job, check: str) -> str:
    """What must be committed when `check` begins and is not: of the first stage that lacks shards; "" where all is."""
    for stage in STAGES:
        if check != FINISH and not stages.NAMES.index(stage.name) <= stages.NAMES.index(check):
            break
        # The check itself runs the later phases of its own stage, or at the end those of the last stages.
        own = not stages.is_gate(stage.spec) if check == FINISH else stage.name == check
        if shard_names(job, stage) is None:
            return f"all shards of {stage.name}"
        phases = stage.phases(job)
        wanted = {s.name for phase in (phases[:1] if own else phases) for s in phase}
        if left := wanted - set(job.store.done(stage.name)):
            return f"{len(left)} shard(s) of {stage.name}"
    return ""
