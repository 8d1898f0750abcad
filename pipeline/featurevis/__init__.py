"""Feature visualization after Lucid: objective, parameterization, transforms and optimizer, each its own file."""

from . import kinds, memory, objectives, parameterizations, recipes, transforms
from .ascent import Ascent, Rendering
from .kinds import KINDS, Picture
from .objectives import Objective
from .recipes import activation_grid, caricature, direction, interpolate
from .render import render, render_units
from .renderer import Renderer
from .settings import Settings

__all__ = [
    "KINDS", "Ascent", "Objective", "Picture", "Renderer", "Rendering", "Settings", "activation_grid", "caricature",
    "direction", "interpolate", "kinds", "memory", "objectives", "parameterizations", "recipes", "render",
    "render_units", "transforms",
]  # fmt: skip
