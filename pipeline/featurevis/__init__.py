"""Feature visualization after Lucid: objective, parameterization, transforms and optimizer, each its own file."""

from . import objectives, parameterizations, transforms
from .objectives import Objective
from .render import Picture, Renderer, Rendering, Settings, render, render_units

__all__ = [
    "Objective", "Picture", "Renderer", "Rendering", "Settings", "objectives", "parameterizations", "render",
    "render_units", "transforms",
]  # fmt: skip
