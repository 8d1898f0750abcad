"""The stages in order. Each is idempotent, resumable by shard and safe to run twice at once."""

from pipeline.job import Stage

from . import calibrate, examples, fold, index, scan, visualize

STAGES: tuple[Stage, ...] = (index.STAGE, calibrate.STAGE, scan.STAGE, fold.STAGE, examples.STAGE, visualize.STAGE)
__all__ = ["STAGES"]
