"""Networks traced without the check of the trace, which takes several passes.

For well-known networks in tests about something else; the check has its own tests, and `benchmarks/opening.py`.
"""

from __future__ import annotations

from torch import nn

from pipeline.graph import Findings, Graph, build


def traced(network: nn.Module, family: str, input_shape: tuple[int, ...]) -> Graph:
    return build(network, family, input_shape, Findings())
