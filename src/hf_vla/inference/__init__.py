"""A policy in use: observations in, actions in robot units out."""

from ..utils.lazy import lazy_names

_LAZY = {"Policy": "policy", "Prediction": "prediction", "VisionLanguageActionPipeline": "pipeline"}

__all__ = sorted(_LAZY)
__getattr__, __dir__ = lazy_names(__name__, _LAZY)
