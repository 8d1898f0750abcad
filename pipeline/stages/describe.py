"""The tables that describe a run: its model, its layers and the connections between them."""

from __future__ import annotations

import json
from typing import Any

from pipeline.job import Job
from store import schema
from store.schema import Table


def description_tables(job: Job) -> dict[Table, dict[str, Any]]:
    """Return the columns of the tables `models`, `runs`, `layers` and `edges`."""
    model, preprocess = job.spec.model, job.spec.model.preprocess
    names = {"model": model.name, "dataset": job.dataset.name}
    layers = job.spec.layers
    edges = model.graph.edges(layers)
    described = {
        "layer_index": list(range(len(layers))),
        "layer": [layer.name for layer in layers],
    }
    for key in (
        "op", "channels", "height", "width", "spatial", "signed", "upper_bound", "rf_size", "rf_stride", "rf_offset",
        "rf_global", "rf_gated",
    ):  # fmt: skip
        described[key] = [getattr(layer, key) for layer in layers]
    return {
        schema.MODELS: {
            "model": model.name, "source": model.source, "weights": model.weights, "digest": model.digest,
            "label_space": model.label_space, "input_height": preprocess.height, "input_width": preprocess.width,
            "preprocessing": json.dumps(preprocess.as_dict(), sort_keys=True),
        },
        schema.RUNS: {"run": job.store.run, **names, "fingerprint": job.spec.fingerprint},
        schema.LAYERS: names | described,
        schema.EDGES: names | {"source": [a for a, _ in edges], "target": [b for _, b in edges]},
    }  # fmt: skip
