"""The architecture of a run: its layers and which feeds which."""

from __future__ import annotations

from dataclasses import asdict
from functools import lru_cache

from query.record.dense import Dense
from query.record.run_tables import Layer
from query.web import architecture, pictures
from query.web.answers import facts
from query.web.answers.panel import Answer, Lines, panel

SIX = 6


@lru_cache(maxsize=32)
def _drawn(
    layers: tuple[Layer, ...], edges: tuple[tuple[str, str], ...], opened: frozenset[str] | None
) -> architecture.Drawing:
    return architecture.draw(layers, edges, opened)


def architecture_page(dense: Dense, chosen: Layer | None, opened: str = "") -> Answer:
    """Return the page of a run. `opened` names the blocks that are unfolded, with commas between them, or is "all"."""
    run, lines = dense.run, Lines(dense.run)
    blocks = {architecture.block_of(layer.name) for layer in run.layers}
    wanted = frozenset(blocks if opened == "all" else blocks & set(opened.split(","))) if opened else None
    drawing = _drawn(run.layers, run.edges, wanted)
    columns = "layer_index, layer, op, channels, height, width, spatial, signed, upper_bound, rf_size, rf_global"
    table = run.rows("layers", columns, last="ORDER BY layer_index")
    sql = f"SELECT {columns}\nFROM layers {lines.where('true')}\nORDER BY layer_index"
    edges = [{"source": a, "target": b} for a, b in sorted(run.edges)]
    chosen = chosen or _first_worth_seeing(dense)
    return {
        "page": "architecture",
        **facts.of_run(run),
        "units": run.units,
        "first": int(run.images.all[0]),
        "opened": opened,
        "folded": any(node.folded for node in drawing.nodes),
        "drawing": asdict(drawing),
        "peek": peek(dense, chosen),
        "panels": {
            "layers": panel("Layers", "In order of execution.", table.to_pylist(), sql),
            "edges": panel(
                "Edges", "Which layer feeds which.", edges,
                f"SELECT source, target FROM edges {lines.where('true')} ORDER BY source, target",
            ),
        },
    }  # fmt: skip


def _first_worth_seeing(dense: Dense) -> Layer:
    """Return the layer that is shown before one is chosen: in the middle, if possible with visualizations."""
    layers = dense.run.layers
    rendered = [layer for layer in layers if layer.spatial and pictures.visualizations(dense, layer)]
    return (rendered or list(layers))[len(rendered or layers) // 2]


def peek(dense: Dense, layer: Layer) -> Answer:
    """Return what is shown of a layer beside the architecture: its facts and six of its units."""
    run = dense.run
    states = facts.states(run, layer)
    rendered = sorted(pictures.visualizations(dense, layer))
    channels = rendered or [channel for channel in range(layer.channels) if states.get(channel) != "dead"]
    state_list = list(states.values())
    return {
        **facts.of_run(run),
        **facts.of_layer(layer),
        "block": architecture.block_of(layer.name),
        "counts": {state: state_list.count(state) for state in facts.STATES},
        "rendered": len(rendered),
        "six": channels[:SIX],
    }
