"""Lay a run's layers out in ranks, from the input at the top to the output at the bottom.

Every layer lies below all layers that feed it (longest path), and beside those of its rank in the order of what feeds
them (the barycentre heuristic of Sugiyama et al. 1981). A large network is folded: a block is then one node.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from query.record.run_tables import Layer

WIDTH, HEIGHT, ACROSS, DOWN, MARGIN = 208, 30, 232, 46, 20
FOLD = 160  # layers from which blocks are folded unless they are asked for


@dataclass(frozen=True)
class Node:
    """A layer, or a folded block of `layers` layers. x and y are its top left corner."""

    name: str
    title: str
    block: str
    layers: int
    channels: int
    shape: str
    x: int
    y: int
    folded: bool


@dataclass(frozen=True)
class Drawing:
    """Nodes, edges as SVG paths, and bands behind the nodes of one block: (label, y, height)."""

    width: int
    height: int
    nodes: tuple[Node, ...]
    edges: tuple[str, ...]
    bands: tuple[tuple[str, int, int], ...]


def block_of(layer: str) -> str:
    """Return the block that a layer's name says it is in: its first part, and the number after that."""
    parts = layer.split(".")[:-1]
    return ".".join(parts[:2] if len(parts) > 1 and parts[1].isdecimal() else parts[:1]) or layer


def draw(layers: Sequence[Layer], edges: Sequence[tuple[str, str]], opened: Collection[str] | None = None) -> Drawing:
    """Lay out the layers of a run. `opened` names the blocks that are not folded; None opens all of a small network."""
    members: dict[str, list[Layer]] = defaultdict(list)
    for layer in layers:
        members[block_of(layer.name)].append(layer)
    whole = set(members) if opened is None and len(layers) <= FOLD else set(opened or ())
    node_of = {
        layer.name: layer.name if block in whole or len(group) == 1 else block
        for block, group in members.items()
        for layer in group
    }
    order = list(dict.fromkeys(node_of[layer.name] for layer in layers))
    place = {name: index for index, name in enumerate(order)}
    known = {(node_of[a], node_of[b]) for a, b in edges if a in node_of and b in node_of}
    links = sorted(((a, b) for a, b in known if place[a] < place[b]), key=lambda link: (place[link[0]], place[link[1]]))
    ranks = _ranks(order, links)
    corners, width = _corners(order, links, ranks)
    nodes = tuple(_node(name, members, corners[name], node_of) for name in order)
    height = MARGIN * 2 + (max(ranks.values(), default=0) + 1) * DOWN
    paths = tuple(_path(corners[a], corners[b], ranks[b] - ranks[a]) for a, b in links)
    return Drawing(width, height, nodes, paths, _bands(nodes))


def _ranks(order: Sequence[str], links: Sequence[tuple[str, str]]) -> dict[str, int]:
    ranks = dict.fromkeys(order, 0)
    feeding = defaultdict(list)
    for a, b in links:
        feeding[b].append(a)
    for name in order:  # in order of execution, so what feeds a node has its rank already
        ranks[name] = max((ranks[a] + 1 for a in feeding[name]), default=0)
    return ranks


def _corners(
    order: Sequence[str], links: Sequence[tuple[str, str]], ranks: Mapping[str, int]
) -> tuple[dict[str, tuple[int, int]], int]:
    """Return the top left corner of each node, and the width of the drawing."""
    rows: dict[int, list[str]] = defaultdict(list)
    for name in order:
        rows[ranks[name]].append(name)
    feeding = defaultdict(list)
    for a, b in links:
        feeding[b].append(a)
    widest = max((len(row) for row in rows.values()), default=1)
    width = MARGIN * 2 + max(widest * ACROSS, ACROSS + 120)
    centre: dict[str, float] = {}
    corners = {}
    for rank in sorted(rows):
        row = rows[rank]
        wanted = {
            name: sum(centre[a] for a in feeding[name]) / len(feeding[name]) if feeding[name] else width / 2
            for name in row
        }
        row = sorted(row, key=lambda name: wanted[name])
        left = width / 2 - len(row) * ACROSS / 2
        for column, name in enumerate(row):
            centre[name] = left + (column + 0.5) * ACROSS
            corners[name] = (round(centre[name] - WIDTH / 2), MARGIN + rank * DOWN)
    return corners, width


def _node(
    name: str, members: Mapping[str, Sequence[Layer]], corner: tuple[int, int], node_of: Mapping[str, str]
) -> Node:
    block = name if name in members and name not in node_of else block_of(name)
    folded = name in members and len(members[name]) > 1 and node_of[members[name][0].name] == name
    group = list(members[name]) if folded else [layer for layer in members[block_of(name)] if layer.name == name]
    last = group[-1]
    shape = f"{last.height}×{last.width}" if last.positions > 1 else ""
    title = name.removeprefix(f"{block}.") if not folded and len(members.get(block, ())) > 1 else name
    channels = sum(layer.channels for layer in group)
    return Node(name, title, block, len(group), channels, shape, *corner, folded)


def _path(source: tuple[int, int], target: tuple[int, int], down: int) -> str:
    """Return an edge as an SVG path. One that skips ranks goes around, to the right of the nodes between."""
    x0, y0 = source[0] + WIDTH // 2, source[1] + HEIGHT
    x1, y1 = target[0] + WIDTH // 2, target[1]
    if down == 1 or abs(x1 - x0) >= WIDTH:
        bend = max((y1 - y0) // 2, 6)
        return f"M{x0} {y0}C{x0} {y0 + bend} {x1} {y1 - bend} {x1} {y1}"
    side = max(x0, x1) + WIDTH // 2
    out = side + 14 + min(6 * down, 60)
    return f"M{source[0] + WIDTH} {y0 - HEIGHT // 2}C{out} {y0} {out} {y1} {target[0] + WIDTH} {y1 + HEIGHT // 2}"


def _bands(nodes: Sequence[Node]) -> tuple[tuple[str, int, int], ...]:
    """Return a band for each block with several nodes of its own, as long as blocks do not overlap."""
    span: dict[str, list[int]] = defaultdict(list)
    for node in nodes:
        span[node.block].append(node.y)
    bands: list[tuple[str, int, int]] = []
    for block, tops in span.items():
        first, last = min(tops), max(tops)
        clear = not bands or bands[-1][1] + bands[-1][2] <= first - 8
        if len(tops) > 1 and clear:
            bands.append((block, first - 8, last - first + HEIGHT + 16))
    return tuple(bands)
