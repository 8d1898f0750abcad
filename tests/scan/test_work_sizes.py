"""Shards of equal cost, cut alike everywhere; and the Slurm chain that shares them out."""

from __future__ import annotations

import itertools
from pathlib import Path

import torch
from torch import nn

from pipeline.config import parse_config
from pipeline.graph.analysis import cost
from pipeline.graph.graph import build
from pipeline.job import Job
from pipeline.stages.work_sizes import shard_sizes, sizes_of


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.two = nn.Conv2d(8, 16, 3, stride=2, padding=1, groups=2, bias=False)
        self.head = nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.two(self.one(x).relu()).relu().mean((2, 3)))


def test_cost_counts_multiply_accumulates_as_torch_does() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    network = Small().eval()
    graph = build(network, "torchvision", (1, 3, 32, 32))
    with FlopCounterMode(display=False) as counted, torch.no_grad():
        network(torch.zeros(1, 3, 32, 32))
    own = cost.of_nodes(graph.module, graph._shapes)
    values = sum(torch.Size(shape[1:]).numel() for shape in graph._shapes.values())
    assert sum(own.values()) - cost.VALUE * values == counted.get_total_flops() // 2


def test_a_layer_costs_what_lies_before_it() -> None:
    graph = build(Small().eval(), "torchvision", (1, 3, 32, 32))
    layers = graph.layers("all")
    costs = [graph.cost(layer) for layer in layers]
    assert all(a < b for a, b in itertools.pairwise(costs))
    assert costs[0] == cost.STEP + 32 * 32 * 3 * cost.VALUE + 32 * 32 * 8 * (27 + cost.VALUE)


def test_sizes_are_whole_batches_and_even_out_the_cost() -> None:
    costs = {"early": 1_000, "middle": 4_000, "late": 7_000}
    sizes = sizes_of(costs, 64, 8)
    assert sizes == {"early": 256, "middle": 64, "late": 40}
    assert all(size % 8 == 0 for size in sizes.values())
    work = [costs[name] * sizes[name] for name in costs]
    assert max(work) / min(work) < 1.15
    assert sizes_of(costs, 1, 8) == {"early": 8, "middle": 8, "late": 8}


def test_cuts_do_not_depend_on_workers(tmp_path: Path) -> None:
    def sizes(workers: int) -> dict[str, int]:
        body = {
            "model": {"source": "torchvision:resnet18", "weights": "random:0"},
            "dataset": {"source": "package:demo"},
        }
        return shard_sizes(
            Job(parse_config(body | {"compute": {"workers": workers, "device": "cpu"}}, "test"), tmp_path)
        )

    one = sizes(1)
    assert one == sizes(16)
    assert one["relu"] > one["fc"]
