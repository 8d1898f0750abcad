"""Check whether this machine sees the files that a shard reads.

On a network file system, the listing of a folder may be a minute old.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

from pipeline.job import Job, Shard, Stage
from pipeline.stages import stage_named
from store import commits
from store.errors import UsageError

STALE = 90.0  # seconds; NFS clients cache a folder's listing for at most 60 s by default


def shard_names(job: Job, stage: Stage) -> set[str] | None:
    """Return the names of all shards of a stage, or None if they follow from a table that is not there yet."""
    try:
        return {shard.name for phase in stage.phases(job) for shard in phase}
    except (UsageError, FileNotFoundError):
        return None


def is_complete(job: Job, stage: Stage) -> bool:
    """Return whether a stage is complete. Raises UsageError if the store was made with other settings."""
    done = job.store.done(stage.name)
    names = shard_names(job, stage)
    return names is not None and names <= set(done)


def unseen(job: Job, stage: Stage, shard: Shard | None = None) -> list[str]:
    """Return the shards, as "STAGE SHARD", that `shard` reads and that this machine does not see as committed.

    They are those of the first incomplete stage that `stage` reads (just "STAGE" if its shards are not known yet). If
    there is none, they are those of earlier phases of `stage` itself, unless `shard` is None.
    """
    for name in stage.spec.after:
        names = shard_names(job, stage_named(name))
        if names is None:
            return [name]
        if missing := names - commits.committed(job.store.root, job.store.run, name):
            return [f"{name} {missing_shard}" for missing_shard in sorted(missing)]
    if shard is None:
        return []
    earlier: set[str] = set()
    for phase in stage.phases(job):
        if any(s.name == shard.name for s in phase):
            break
        earlier |= {s.name for s in phase}
    return [
        f"{stage.name} {missing_shard}"
        for missing_shard in sorted(earlier - commits.committed(job.store.root, job.store.run, stage.name))
    ]


def require_inputs(job: Job, stage: Stage, also_run: Sequence[str]) -> None:
    """Raise UsageError if a stage that `stage` reads is neither complete nor in `also_run`, the stages of this run."""
    patience = STALE if "SLURM_JOB_ID" in os.environ else 0.0  # another node may just have finished it
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
    """Return what a stage lacks, or "" if this machine sees all its shards."""
    names = shard_names(job, stage)
    if names is None:
        return "nor is a stage before it"
    count = len(names - commits.committed(job.store.root, job.store.run, stage.name))
    return f"{count} shards are missing" if count else ""


def wait_for_inputs(job: Job, stage: Stage, shard: Shard, later: bool = True, patience: float | None = None) -> None:
    """Wait until this machine sees everything that `shard` reads: a fold of only a part would be wrong without notice.

    `later` says whether the shard reads earlier phases of its own stage. `patience` is in seconds; None means STALE.
    Raises TimeoutError, which names what is missing, if it is not seen by then.
    """
    patience = STALE if patience is None else patience
    deadline = time.monotonic() + patience
    while missing := unseen(job, stage, shard if later else None):
        if time.monotonic() > deadline:
            raise TimeoutError(
                f"{stage.name} {shard.name} cannot start: these shards are not visible on this machine: "
                f"{', '.join(missing[:3])}{' ...' if len(missing) > 3 else ''}"
            )
        time.sleep(min(1.0, patience / 10))
