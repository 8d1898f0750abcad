"""What a job computes: its config, model and layers, and the fingerprint of everything that changes results."""

from __future__ import annotations

import functools
import hashlib
import json
from importlib.metadata import version
from typing import Any

import torch

from pipeline import config as configs
from pipeline.config import Config, Layers
from pipeline.graph import Layer
from pipeline.models import Model, open_model
from pipeline.scan.batch_statistics import UnitIndex
from store.errors import UsageError, did_you_mean
from store.layer_globs import matching


class Spec:
    """A config on one type of device. The model is opened when it is first asked for."""

    def __init__(self, config: Config, device: str) -> None:
        self.config, self.device = config, device

    @functools.cached_property
    def model(self) -> Model:
        c = self.config.model
        return open_model(c.source, c.weights, c.name or None)

    @functools.cached_property
    def layers(self) -> tuple[Layer, ...]:
        return self.model.graph.layers(self.config.model.layers)

    @functools.cached_property
    def units(self) -> UnitIndex:
        return UnitIndex(self.layers)

    @functools.cached_property
    def visualized(self) -> tuple[Layer, ...]:
        """The layers of the run that `[visualize] layers` names."""
        return self.chosen("visualize", self.config.visualize.layers)

    def chosen(self, section: str, chosen: Layers) -> tuple[Layer, ...]:
        """Return the layers of the run that a section of the config names: all of them for "blocks" and "all"."""
        if chosen in ("blocks", "all"):
            return self.layers
        names = [layer.name for layer in self.layers]

        def no_match(glob: str) -> UsageError:
            hint = did_you_mean(glob, names) or f"see `unitscope layers {self.config.model.source}`"
            return UsageError(f"[{section}] layers: {glob!r} matches no layer of the run: {hint}")

        names_chosen = set(matching(names, chosen, no_match))
        return tuple(layer for layer in self.layers if layer.name in names_chosen)

    @functools.cached_property
    def no_predictions(self) -> str:
        """Why the run records no predictions, or "" if it does."""
        logits = self.model.graph.logits
        if logits is None:
            return self.model.graph.no_logits
        if logits not in {layer.node for layer in self.layers}:
            return f"the chosen layers do not include the logits, {logits}"
        return ""

    @functools.cached_property
    def keys(self) -> dict[str, dict[str, Any]]:
        """The config's keys that change results, by section."""
        return configs.fingerprinted(self.config, self.device)

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 over everything that changes results."""
        body = {
            "config": {k: self.keys[k] for k in self.keys if k not in ("model", "dataset")},
            # Without the source: pictures may move, and the index has a digest of their contents.
            "dataset": {k: v for k, v in self.keys["dataset"].items() if k != "source"},
            "layers": [layer.name for layer in self.layers],
            "preprocessing": self.model.preprocess.as_dict(),
            "versions": {"torch": torch.__version__, "unitscope": version("unitscope")},
            "weights": self.model.digest,
        }
        return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
