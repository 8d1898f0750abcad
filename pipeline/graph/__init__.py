"""Networks as graphs: tracing, layers and what is known of them, folding, taps and truncation."""

from pipeline.graph.arranging import arranged
from pipeline.graph.fold import fold_norms
from pipeline.graph.graph import Graph, build
from pipeline.graph.halves import PIECE, halves
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
