"""Models: any torch vision network with its weights, preprocessing and labels."""

from .opening import Model, open_model
from .preprocessing import Preprocess

__all__ = ["Model", "Preprocess", "open_model"]
