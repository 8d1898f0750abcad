"""Models: a vision network of torch with its weights, preprocessing and labels."""

from pipeline.models.opening import Model, open_model
from pipeline.models.preprocessing import Preprocess

__all__ = ["Model", "Preprocess", "open_model"]
