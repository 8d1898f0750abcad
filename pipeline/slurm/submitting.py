"""Submit a chain of jobs to Slurm, and check between two stages whether shards are missing.

Slurm does not requeue a task that was killed or failed, and a job that depends on its success would wait for ever. Jobs
therefore depend only on the end of others. A check looks at the store. If shards are missing, it cancels the rest of
its chain and submits a new one for what is missing. It stops with an error if its chain committed nothing.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from pipeline import driver
from pipeline.job import Job
from pipeline.slurm import chain, queue
from pipeline.slurm.chain import Step
from store import commits, layout, publish
from store.errors import UsageError
from store.logs import Log


@dataclass(frozen=True)
class Options:
    """Options for sbatch. An empty one means the cluster's default."""

    config: str
    store: str
    array: int
    partition: str = ""
    gres: str = ""
    time: str = ""
    cpus: int = 0
    more: tuple[str, ...] = ()  # passed to sbatch as they are

    def words(self) -> list[str]:
        """Return these options as arguments of `unitscope slurm`, for the jobs that check."""
        named = [("--partition", self.partition), ("--gres", self.gres), ("--time", self.time)]
        words = ["--store", self.store, "--array", str(self.array)]
        words += [word for name, value in named if value for word in (name, value)]
        words += ["--cpus", str(self.cpus)] if self.cpus else []
        return words + [word for value in self.more for word in ("--sbatch", value)]


def submit(job: Job, options: Options, dry_run: bool = False) -> str:
    """Submit the chain for what is missing, and return lines that say what was submitted.

    With `dry_run`, return the batch scripts instead and write nothing. Raises UsageError if this machine has no Slurm,
    or if jobs of this store are still queued.
    """
    publish.check_path(job.store.root)
    wanted = chain.steps(job, options.array)
    if not wanted:
        return f"{job.store.root}: {job.store.run} is complete; there is nothing to submit"
    number = 1 + max((j.chain for j in queue.submitted(job.store.root)), default=0)
    if dry_run:
        return "\n".join(_script(job, options, step, number) + _command_text(options, step) for step in wanted)
    _refuse_queued(job)
    publish.ensure_store(job.store.root)
    return "\n".join(_submit(job, options, wanted, number))


def _refuse_queued(job: Job) -> None:
    queued = queue.queued()
    if queued is None:
        raise UsageError("this machine has no Slurm (no squeue): --dry-run prints what would be submitted")
    steps = queue.of_store(queue.submitted(job.store.root), queued)
    if steps:
        names = sorted({entry.job for entries in steps.values() for entry in entries}, key=int)
        raise UsageError(
            f"jobs of {job.store.root} are queued already ({', '.join(names)}): wait for them (`unitscope status`), "
            f"or `scancel {' '.join(names)}`"
        )


def _submit(job: Job, options: Options, wanted: list[Step], number: int) -> list[str]:
    log = Log(job.store.root, {"engine": "slurm"}, kind="slurm")
    done = len(commits.records(job.store.root, job.store.run))
    ids: dict[str, str] = {}
    lines = []
    for step in wanted:
        path = job.store.root / layout.LOGS / "slurm" / f"chain-{number}" / f"{step.name}.sbatch"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(_script(job, options, step, number))
        ids[step.name] = _sbatch(options, step, [ids[name] for name in step.after], path)
        log.write("submitted", chain=number, run=job.store.run, step=step.name, job=ids[step.name], done=done)
        tasks = f", {len(step.indices)} task(s)" if step.indices else ""
        after = f" after {', '.join(step.after)}" if step.after else ""
        lines.append(f"{ids[step.name]:>8}  {step.name}{tasks}{after}")
    return [f"chain {number} of {job.store.run}: watch it with `unitscope status {job.store.root}`", *lines]


def _sbatch(options: Options, step: Step, after: list[str], path: Path) -> str:
    command = ["sbatch", "--parsable", *_dependency(after), str(path)]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if answer.returncode:
        raise UsageError(f"sbatch refused {path}: {answer.stderr.strip() or answer.stdout.strip()}")
    return answer.stdout.strip().partition(";")[0]


def _dependency(after: list[str]) -> list[str]:
    return [f"--dependency=afterany:{':'.join(after)}", "--kill-on-invalid-dep=yes"] if after else []


def _command_text(options: Options, step: Step) -> str:
    return f"# sbatch {shlex.join(_dependency([f'<{name}>' for name in step.after]))} {step.name}.sbatch\n"


def _script(job: Job, options: Options, step: Step, number: int) -> str:
    """Return a batch script. It uses `exec`, so that the process that Slurm watches is the command itself."""
    folder = job.store.root.absolute() / layout.LOGS / "slurm"
    lines = [
        f"--job-name=unitscope-{step.name}", f"--chdir={os.getcwd()}", "--requeue", "--open-mode=append",
        f"--output={folder}/%x-%A_%a.out" if step.indices else f"--output={folder}/%x-%j.out",
    ]  # fmt: skip
    lines += [f"--array={_ranges(step.indices)}"] if step.indices else []
    lines += [f"--partition={options.partition}"] if options.partition else []
    lines += [f"--gres={options.gres}"] if options.gres and step.on_device else []
    lines += [f"--time={options.time}"] if options.time else []
    lines += [f"--cpus-per-task={options.cpus}"] if options.cpus else []
    lines += options.more
    body = "".join(f"#SBATCH {line}\n" for line in lines)
    return f"#!/bin/bash\n{body}exec {_command(job, options, step, number)}\n"


def _command(job: Job, options: Options, step: Step, number: int) -> str:
    first, *rest = step.words
    if first == "slurm":
        words = [first, options.config, *options.words(), *rest, "--chain", str(number)]
    else:
        words = [first, options.config, "--store", options.store, *rest, "--device", job.spec.device]
    words = [sys.executable, "-m", "unitscope", *words]
    return " ".join(w.format(index="$SLURM_ARRAY_TASK_ID") if "{index}" in w else shlex.quote(w) for w in words)


def _ranges(indices: tuple[int, ...]) -> str:
    """Write indices as ranges: (0, 1, 2, 5) becomes "0-2,5"."""
    pieces: list[list[int]] = []
    for index in indices:
        if pieces and index == pieces[-1][-1] + 1:
            pieces[-1].append(index)
        else:
            pieces.append([index])
    return ",".join(str(p[0]) if len(p) == 1 else f"{p[0]}-{p[-1]}" for p in pieces)


def check(job: Job, options: Options, stage: str, number: int) -> str:
    """Run the check after a stage's array, and return lines that say what was done.

    If no shard is missing, compute the rest of the stage. Otherwise submit a new chain for what is missing. Raises
    UsageError if this chain, of that `number`, committed nothing.
    """
    submitted = queue.submitted(job.store.root)
    if any(entry.chain > number for entry in submitted):
        return f"chain {number} was already replaced by a later one"
    left = chain.unready(job, stage)
    if not left:
        driver.run(job, () if stage == chain.FINISH else (stage,))
        return f"{stage}: complete"
    before = next((entry.done for entry in submitted if entry.chain == number), -1)
    _take_back(number, stage, submitted)
    if len(commits.records(job.store.root, job.store.run)) <= before:
        raise UsageError(
            f"chain {number} committed nothing and {left} are missing: see {job.store.root / layout.LOGS / 'slurm'}; "
            "remove the cause, then `unitscope slurm` submits what is missing"
        )
    lines = _submit(job, options, chain.steps(job, options.array), number + 1)
    return "\n".join([f"after {stage}, {left} are missing: resubmitted", *lines])


def _take_back(number: int, stage: str, submitted: list[queue.Submitted]) -> None:
    """Cancel the jobs of a chain that come after this check: they would start too early."""
    own = [entry for entry in submitted if entry.chain == number]
    name = chain.check_name(stage)
    position = next((i for i, entry in enumerate(own) if entry.step == name), len(own))
    later = [entry.job for entry in own[position + 1 :]]
    if later:
        subprocess.run(["scancel", *later], check=False)
