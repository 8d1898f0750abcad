"""Whether this machine sees what a shard reads. On a network file system a folder's listing may be a minute old."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

from pipeline.job import Job, Shard, Stage
from pipeline.stages import stage_named
from store import publish
from store.errors import UsageError

STALE = 90.0  # seconds: NFS clients keep a folder's listing for at most 60 by default


def shard_names(job: Job, stage: Stage) -> set[str] | None:
    """All shards of a stage; None where they follow from a table that is not there yet."""
    try:
        return {shard.name for phase in stage.phases(job) for shard in phase}
    except (UsageError, FileNotFoundError):
        return None


def is_complete(job: Job, stage: Stage) -> bool:
    """Whether every shard of a stage is committed. Raises UsageError where the store was made with other settings."""
    done = job.store.done(stage.name)
    names = shard_names(job, stage)
    return names is not None and names <= set(done)


def unseen(job: Job, stage: Stage, shard: Shard | None = None) -> list[str]:
    """Shards, as STAGE SHARD, that must be committed before `shard` (any, where None) and are not, seen from here."""
    for name in stage.spec.after:
        names = shard_names(job, stage_named(name))
        if names is None:
            return [name]
        if missing := names - publish.committed(job.store.root, job.store.run, name):
            return [f"{name} {found}" for found in sorted(missing)]
    if shard is None:
        return []
    earlier: set[str] = set()
    for phase in stage.phases(job):
        if any(s.name == shard.name for s in phase):
            break
        earlier |= {s.name for s in phase}
    return [
        f"{stage.name} {found}"
        for found in sorted(earlier - publish.committed(job.store.root, job.store.run, stage.name))
    ]


def require_inputs(job: Job, stage: Stage, also_run: Sequence[str]) -> None:
    """Raises UsageError where a stage that `stage` reads is neither done nor among those that run with it."""
    patience = STALE if "SLURM_JOB_ID" in os.environ else 0.0  # another node may have finished it just now
    deadline = time.monotonic() + patience
    for name in stage.spec.after:
        while name not in also_run and (missing := _missing(job, stage_named(name))):
            if time.monotonic() >= deadline:
                raise UsageError(
                    f"stage {name} of {job.store.run} is not finished ({missing}): run it first, with --stage {name} "
                    "or without --stage"
                )
            time.sleep(1.0)


def _missing(job: Job, stage: Stage) -> str:
    names = shard_names(job, stage)
    if names is None:
        return "nor is one before it"
    count = len(names - publish.committed(job.store.root, job.store.run, stage.name))
    return f"{count} shards are missing" if count else ""


def wait_for_inputs(job: Job, stage: Stage, shard: Shard, later: bool = True, patience: float | None = None) -> None:
    """Waits until all that `shard` reads is in sight: a fold of what was in sight so far would be wrong, silently.

    `later`: whether earlier phases of its stage are among that. Raises TimeoutError that names what is missing.
    """
    patience = STALE if patience is None else patience
    deadline = time.monotonic() + patience
    while missing := unseen(job, stage, shard if later else None):
        if time.monotonic() > deadline:
            raise TimeoutError(
                f"{stage.name} {shard.name} cannot begin: not committed, as this machine sees the store, are "
                f"{', '.join(missing[:3])}{' ...' if len(missing) > 3 else ''}"
            )
        time.sleep(min(1.0, patience / 10))
