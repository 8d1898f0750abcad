"""How many pictures of a layer make a shard: `[visualize] shard_size` on average, fewer where a step costs more."""

from __future__ import annotations

from collections.abc import Mapping

from pipeline.job import Job


def shard_sizes(job: Job) -> dict[str, int]:
    """Pictures a shard by layer, in whole batches, so that shards take equally long. Follows from config and graph."""
    v = job.config.visualize
    costs = {layer.name: job.model.graph.cost(layer) for layer in job.visualized}
    return sizes_of(costs, v.shard_size, v.batch)


def sizes_of(costs: Mapping[str, int], shard_size: int, batch: int) -> dict[str, int]:
    mean = sum(costs.values()) / max(len(costs), 1)
    return {name: max(round(shard_size * mean / cost / batch), 1) * batch for name, cost in costs.items()}
