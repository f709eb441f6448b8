"""Processor of QwenDiscreteDiffusion: the state is a tensor for the action head."""

from ...processing.processing_vla import VLAProcessor
from .configuration_qwen_discrete_diffusion import QwenDiscreteDiffusionConfig


class QwenDiscreteDiffusionProcessor(VLAProcessor):
    """Processor of [`QwenDiscreteDiffusionForActionPrediction`]. The normalised state goes to the head, beside the prompt."""

    config_class = QwenDiscreteDiffusionConfig


__all__ = ["QwenDiscreteDiffusionProcessor"]
