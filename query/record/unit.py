"""A unit of one run."""

from __future__ import annotations

from dataclasses import dataclass

from query.record.run_tables import Layer, Run


@dataclass(frozen=True)
class Unit:
    """One channel of one layer of a run."""

    run: Run
    layer: Layer
    channel: int

    @property
    def name(self) -> str:
        return f"{self.layer.name}:{self.channel}"

    @property
    def index(self) -> int:
        """The unit's index in unit order (layer_index, channel): its column in the dense record."""
        return self.layer.start + self.channel
