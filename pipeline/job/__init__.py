"""A job: one config on one store, in four parts: `spec`, `dataset`, `store` and `runtime`."""

from pipeline.job.job import Job
from pipeline.job.stage import Expected, Shard, Stage, Work

__all__ = ["Expected", "Job", "Shard", "Stage", "Work"]
