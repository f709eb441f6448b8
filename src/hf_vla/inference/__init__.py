"""Use a policy: observations in, actions in robot units out."""

from typing import TYPE_CHECKING

from ..utils.lazy import lazy_names

if TYPE_CHECKING:
    from .pipeline import VisionLanguageActionPipeline as VisionLanguageActionPipeline
    from .policy import Policy as Policy
    from .prediction import Prediction as Prediction

_LAZY = {"Policy": "policy", "Prediction": "prediction", "VisionLanguageActionPipeline": "pipeline"}

__all__ = sorted(_LAZY)
__getattr__, __dir__ = lazy_names(__name__, _LAZY)
