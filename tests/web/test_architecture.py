"""The drawing of the architecture: what feeds a layer lies above it, nothing overlaps, large networks are folded."""

from __future__ import annotations

import itertools
import random

import pytest
from web.conftest import DemoPage

from query.record.run_tables import Layer
from query.web.architecture import DOWN, HEIGHT, WIDTH, block_of, draw


def layer(index: int, name: str) -> Layer:
    return Layer(index, name, "conv2d", 8, 4, 4, True, False, None, None, None, None, True, False, index * 8)


def network(count: int, seed: int) -> tuple[list[Layer], list[tuple[str, str]]]:
    """A random network: every layer is fed by one to three of the ten before it."""
    chance = random.Random(seed)
    layers = [layer(i, f"stage{i // 40}.{i // 8}.op{i}") for i in range(count)]
    edges = [
        (layers[j].name, layers[i].name)
        for i in range(1, count)
        for j in {chance.randrange(max(i - 10, 0), i) for _ in range(chance.randint(1, 3))}
    ]
    return layers, edges


@pytest.mark.parametrize("seed", range(5))
def test_edges_run_down_and_nodes_do_not_overlap(seed: int) -> None:
    layers, edges = network(120, seed)
    drawing = draw(layers, edges)
    place = {node.name: node for node in drawing.nodes}
    assert set(place) == {one.name for one in layers}
    assert all(place[b].y - place[a].y >= DOWN for a, b in edges)
    assert len(drawing.edges) == len(edges)
    for a, b in itertools.combinations(drawing.nodes, 2):
        assert abs(a.x - b.x) >= WIDTH or abs(a.y - b.y) >= HEIGHT
    assert all(0 <= node.x <= drawing.width - WIDTH and node.y + HEIGHT <= drawing.height for node in drawing.nodes)


def test_a_large_network_is_folded_by_block_and_can_be_unfolded() -> None:
    layers, edges = network(600, 0)
    folded = draw(layers, edges)
    blocks = {block_of(one.name) for one in layers}
    assert {node.name for node in folded.nodes} == blocks
    assert all(node.folded for node in folded.nodes)
    assert sum(node.layers for node in folded.nodes) == 600
    one = min(blocks)
    partly = draw(layers, edges, {one})
    assert {node.name for node in partly.nodes} == (blocks - {one}) | {
        x.name for x in layers if block_of(x.name) == one
    }
    assert len(draw(layers, edges, blocks).nodes) == 600


def test_blocks_are_what_names_say() -> None:
    names = {"blocks.5.2.bn1": "blocks.5", "layer1.0.relu_1": "layer1.0", "conv1": "conv1", "stem.relu": "stem",
             "features.denseblock1.denselayer2.relu": "features"}  # fmt: skip
    assert {name: block_of(name) for name in names} == names


def test_the_demo_is_drawn_whole(demo_page: DemoPage) -> None:
    run = demo_page.scope.records[demo_page.run].run
    drawing = draw(run.layers, run.edges)
    assert [node.name for node in drawing.nodes] == [one.name for one in run.layers]
    assert "blocks.5" in {label for label, _, _ in drawing.bands}
