"""The precomputation pipeline: models, graphs, datasets and the staged jobs that fill a store.

`import pipeline` alone is cheap: torch is imported when a function is first used.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.graph import Layer
    from pipeline.models import Model

__all__ = ["layers", "open_model"]


def open_model(source: str, weights: str | None = None, name: str | None = None) -> Model:
    """Open `torchvision:NAME`, `timm:NAME` or `python:MODULE:FACTORY`: see `pipeline.models.open_model`."""
    from pipeline import models

    return models.open_model(source, weights, name)


def layers(model: Model, choose: str | Sequence[str] = "blocks") -> tuple[Layer, ...]:
    """Return the layers of a model: "blocks" (the default choice), "all", or those that match globs."""
    return model.graph.layers(choose)


def __getattr__(name: str) -> Any:
    if name == "featurevis":
        import importlib

        return importlib.import_module("pipeline.featurevis")
    raise AttributeError(f"module 'pipeline' has no attribute {name!r}")
