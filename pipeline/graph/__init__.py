"""Networks as graphs: trace a network, describe its layers, fold batch norms, add taps and truncate."""

from pipeline.graph.batchnorm_folding import fold_norms
from pipeline.graph.cpu.fusion import fused
from pipeline.graph.cpu.stem import STEM_BATCH, split_stem
from pipeline.graph.fidelity import Findings
from pipeline.graph.graph import Graph, build
from pipeline.graph.layer import Layer, Layout
from pipeline.graph.surgery import in_memory_format, truncated, unclipped, with_taps

__all__ = [
    "STEM_BATCH",
    "Findings",
    "Graph",
    "Layer",
    "Layout",
    "build",
    "fold_norms",
    "fused",
    "in_memory_format",
    "split_stem",
    "truncated",
    "unclipped",
    "with_taps",
]
