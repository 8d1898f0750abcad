"""The stages in order. Each is idempotent, resumable by shard and safe to run twice at once."""

from pipeline.job import Stage
from pipeline.stages import calibrate, examples, fold, index, scan, visualize

STAGES: tuple[Stage, ...] = (index.STAGE, calibrate.STAGE, scan.STAGE, fold.STAGE, examples.STAGE, visualize.STAGE)

# What each stage reads: with an engine, examples and visualizations run beside each other.
AFTER: dict[str, tuple[str, ...]] = {
    "index": (),
    "calibrate": ("index",),
    "scan": ("index", "calibrate"),
    "fold": ("index", "scan"),
    "examples": ("index", "fold"),
    "visualize": ("index", "fold"),
}


WITHOUT_NETWORK = ("index", "fold")  # stages that leave the GPUs alone


def stage_named(name: str) -> Stage:
    return next(stage for stage in STAGES if stage.name == name)


__all__ = ["AFTER", "STAGES", "WITHOUT_NETWORK", "stage_named"]
