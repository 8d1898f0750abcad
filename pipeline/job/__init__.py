"""A job: one config on one store, in four parts: `spec`, `dataset`, `store` and `runtime`."""

from pipeline.job.job import Job
from pipeline.job.stage import Shard, Stage

__all__ = ["Job", "Shard", "Stage"]
