"""Repair a store: forget the shards whose files are damaged or missing, and run them again.

If the partials that they read are gone, the shards that made those run again too.
"""

from __future__ import annotations

import tomllib
from dataclasses import replace
from pathlib import Path

from pipeline import driver
from pipeline.config import Config, parse_config
from pipeline.job import Job
from pipeline.stages import STAGES, stage_named
from store import commits, layout, publish, verify
from store.commits import Record
from store.errors import UsageError


def repair_store(root: Path, model_code: bool = False) -> str:
    """Repair every run of a store, and return a line that says what was done.

    `model_code` allows models from a `python:` source, whose code is then run. Raises UsageError if a run cannot be
    opened, or if problems are left.
    """
    report = verify.verify(root)
    if not report.problems:
        return f"{root}: nothing to repair"
    restored = [p.path for p in report.problems if p.record is None and publish.restore_record(root, p.path)]
    if restored:
        publish.write_manifest(root)
        report = verify.verify(root)
        if not report.problems:
            return f"{root}: repaired, {len(restored)} commit record(s) written again from the manifest"
    damaged = verify.repairable(report)
    lost = [p.path for p in report.problems if p.record is None and p.path.startswith(f"{layout.COMMITS}/")]
    runs = sorted({r.run for r in damaged} | {path.split("/")[1] for path in lost})
    jobs = [_job_of(root, run, model_code) for run in runs]  # opens all before anything is removed
    for path in lost:
        publish.remove_damaged(root, path)
    publish.write_manifest(root)
    for job in jobs:
        damaged_here = [record for record in damaged if record.run == job.store.run]
        again = {path.split("/")[2] for path in lost if path.split("/")[1] == job.store.run}
        stages = {r.stage for r in commits.records(root, job.store.run)} | again
        for record in damaged_here:
            _forget(job, record)
        driver.run(job, [stage.name for stage in STAGES if stage.name in stages])
    left = verify.verify(root).problems
    if left:
        raise UsageError(
            f"{root}: {len(left)} problem(s) are left that running shards again cannot repair; the first: {left[0]}"
        )
    return f"{root}: repaired, {len(damaged) + len(lost)} shard(s) run again"


def _job_of(root: Path, run: str, model_code: bool) -> Job:
    config = config_of(root, run)
    if config.model.source.startswith("python:") and not model_code:
        raise UsageError(
            f"run {run} has the model {config.model.source}, which runs code: if you trust this store, "
            "repair it with --allow-model-code"
        )
    job = Job(config, root)
    if job.store.run != run:
        raise UsageError(f"{root}: run {run} opens as {job.store.run} now: has its model or dataset been renamed?")
    return job


def config_of(root: Path, run: str) -> Config:
    """Return the config that a run was made with.

    It comes from the record of the index, which keeps every key that changes results.
    """
    record = commits.find_record(root, run, "index", "index")
    if record is None or "config" not in record.facts:
        raise UsageError(f"{root}: run {run} has no index record, so its config is lost: run the config again")
    config = parse_config(tomllib.loads(record.facts["config"]), f"{root}, run {run}")
    model, _, dataset = run.partition("@")
    return replace(
        config,
        model=replace(config.model, name=model),
        dataset=replace(config.dataset, name=dataset, max_bad_fraction=1.0),
        # How many processes and threads run is not for a store to say: it may come from anywhere.
        compute=replace(config.compute, workers=1, threads=0, gpus=0.0),
    )


def _forget(job: Job, record: Record) -> None:
    """Forget a shard, and also the shards that made its inputs if these partials are gone."""
    stage_named(record.stage).before_rerun(job, record)
    publish.remove_record(job.store.root, record)
    for stage in STAGES:
        consumer, last = stage.spec.consumer or ("", "")
        if consumer != record.stage or (stage.name == record.stage and record.shard != last):
            continue
        for needed in commits.records(job.store.root, job.store.run, stage.name):
            partial = [f for f in needed.files if layout.is_partial(f.path)]
            if any(not (job.store.root / f.path).exists() for f in partial):
                publish.remove_record(job.store.root, needed)
