"""Feature visualization after Lucid. Objective, parameterization, transforms and optimizer can each be replaced."""

from pipeline.featurevis import kinds, memory, objectives, parameterizations, recipes, transforms
from pipeline.featurevis.ascent import Ascent, Rendering
from pipeline.featurevis.kinds import KINDS, Picture
from pipeline.featurevis.objectives import Objective
from pipeline.featurevis.recipes import activation_grid, caricature, direction, interpolate
from pipeline.featurevis.render import render, render_units
from pipeline.featurevis.renderer import Renderer
from pipeline.featurevis.settings import Settings

__all__ = [
    "KINDS", "Ascent", "Objective", "Picture", "Renderer", "Rendering", "Settings", "activation_grid", "caricature",
    "direction", "interpolate", "kinds", "memory", "objectives", "parameterizations", "recipes", "render",
    "render_units", "transforms",
]  # fmt: skip
