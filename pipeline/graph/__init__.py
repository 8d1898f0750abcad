"""Networks as graphs: tracing, layers and what is known of them, folding, taps and truncation."""

from pipeline.graph.batchnorm_folding import fold_norms
from pipeline.graph.cpu.fusion import arranged
from pipeline.graph.cpu.stem import PIECE, split_stem
from pipeline.graph.graph import Graph, build
from pipeline.graph.layer import Layer, Layout
from pipeline.graph.surgery import truncated, unclipped, with_taps

__all__ = [
    "PIECE",
    "Graph",
    "Layer",
    "Layout",
    "arranged",
    "build",
    "fold_norms",
    "halves",
    "truncated",
    "unclipped",
    "with_taps",
]
