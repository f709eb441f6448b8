"""Use a policy: observations in, actions in robot units out."""

from typing import TYPE_CHECKING

from ..utils.lazy import lazy_names

if TYPE_CHECKING:
    from .chunk_rules import ChunkRule as ChunkRule
    from .pipeline import VisionLanguageActionPipeline as VisionLanguageActionPipeline
    from .policy import Policy as Policy
    from .policy_runner import PolicyRunner as PolicyRunner
    from .prediction import Prediction as Prediction

_LAZY = {
    "ChunkRule": "chunk_rules",
    "Policy": "policy",
    "PolicyRunner": "policy_runner",
    "Prediction": "prediction",
    "VisionLanguageActionPipeline": "pipeline",
}

__all__ = sorted(_LAZY)
__getattr__, __dir__ = lazy_names(__name__, _LAZY)
