"""Repair: the shards whose files are damaged or missing are forgotten and run again, with what they were made from."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from pathlib import Path

from pipeline import driver
from pipeline.config import Config, parse_config
from pipeline.job import Job
from store import layout, publish, verify
from store.errors import UsageError
from store.publish import Record


def repair_store(root: Path) -> str:
    """Repairs every run of a store; returns what was done as one line."""
    verify.require_store(root)
    report = verify.verify(root)
    damaged = verify.repairable(report)
    others = [p for p in report.problems if p.record is None]
    for problem in others:
        if problem.path.startswith(f"{layout.COMMITS}/"):
            publish.remove_damaged(root, problem.path)
    if not report.problems:
        return f"{root}: nothing to repair"
    for run in sorted({r.run for r in damaged} | {p.path.split("/")[1] for p in others if "/" in p.path}):
        job = Job(_config_of(root, run), root)
        if job.run != run:
            raise UsageError(f"{root}: run {run} opens as {job.run} now: has its model or dataset been renamed?")
        for record in damaged:
            if record.run == run:
                _forget(job, record)
        driver.run(job)
    publish.write_manifest(root)
    left = verify.verify(root).problems
    if left:
        raise UsageError(f"{root}: {len(left)} problems are left; first: {left[0]}")
    return f"{root}: repaired, {len(damaged)} shard(s) run again"


def _config_of(root: Path, run: str) -> Config:
    """The config a run was made with, from its index record, which keeps every key that changes results."""
    record = publish.find_record(root, run, "index", "index")
    if record is None:
        raise UsageError(f"{root}: run {run} has no index record, so its config is lost: run the config again")
    config = parse_config(tomllib.loads(record.facts["config"]), f"{root}, run {run}")
    model, _, dataset = run.partition("@")
    return replace(
        config,
        model=replace(config.model, name=model),
        dataset=replace(config.dataset, name=dataset, max_bad_fraction=1.0),
    )


def _forget(job: Job, record: Record) -> None:
    """Forgets a shard, and the partials' makers where its inputs are gone already."""
    publish.remove_record(job.root, record)
    for stage, (consumer, _) in verify.CONSUMERS.items():
        if consumer != record.stage or (stage == record.stage and record.shard != "finish"):
            continue
        for needed in publish.records(job.root, job.run, stage):
            partial = [f for f in needed.files if layout.is_partial(f.path)]
            if any(not (job.root / f.path).exists() for f in partial):
                publish.remove_record(job.root, needed)
