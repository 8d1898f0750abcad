"""Sizes of pieces of work: channels in a block of the fold, and pictures in a shard of visualizations."""

from __future__ import annotations

from collections.abc import Mapping

from pipeline.job import Job

MEMORY = 64 << 20  # bytes of one statistic that the fold holds at a time
FEWEST = 16  # channels that the fold reads together, however many images there are


def channels_together(images: int) -> int:
    """Return the number of channels whose values on all images the fold holds at a time.

    Chunks of a partial must not be wider than this, or the fold reads them more than once: with chunks of one MiB, it
    would read the partials of a million images twenty times.
    """
    return max(MEMORY // (4 * max(images, 1)), FEWEST)


def shard_sizes(job: Job) -> dict[str, int]:
    """Return the number of pictures in a shard, by layer. It follows from the config and the graph alone.

    The average is about `[visualize] shard_size`. A layer whose step costs more gets fewer pictures, in whole batches,
    so that all shards take about the same time.
    """
    v = job.spec.config.visualize
    costs = {layer.name: job.spec.model.graph.cost(layer) for layer in job.spec.visualized}
    return sizes_of(costs, v.shard_size, v.batch)


def sizes_of(costs: Mapping[str, int], shard_size: int, batch: int) -> dict[str, int]:
    """Return sizes of shards inversely proportional to the costs, in whole batches: `shard_size` at the mean cost."""
    mean = sum(costs.values()) / max(len(costs), 1)
    return {name: max(round(shard_size * mean / cost / batch), 1) * batch for name, cost in costs.items()}
