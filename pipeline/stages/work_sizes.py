"""How much work goes together: channels in a block of the fold, and pictures in a shard of visualizations."""

from __future__ import annotations

from collections.abc import Mapping

from pipeline.job import Job

MEMORY = 64 << 20  # bytes of one statistic that the fold holds at a time
FEWEST = 16  # channels it takes together, however many images: a chunk of a partial has no fewer


def channels_together(images: int) -> int:
    """Channels whose values on all images the fold holds at a time. Chunks of partials are as wide, or narrower: with a
    mebibyte each, a million images would be read twenty times over."""
    return max(MEMORY // (4 * max(images, 1)), FEWEST)


def shard_sizes(job: Job) -> dict[str, int]:
    """Pictures a shard by layer: `[visualize] shard_size` on average, fewer where a step costs more, in whole batches,
    so that shards take equally long. Follows from config and graph."""
    v = job.spec.config.visualize
    costs = {layer.name: job.spec.model.graph.cost(layer) for layer in job.spec.visualized}
    return sizes_of(costs, v.shard_size, v.batch)


def sizes_of(costs: Mapping[str, int], shard_size: int, batch: int) -> dict[str, int]:
    mean = sum(costs.values()) / max(len(costs), 1)
    return {name: max(round(shard_size * mean / cost / batch), 1) * batch for name, cost in costs.items()}
