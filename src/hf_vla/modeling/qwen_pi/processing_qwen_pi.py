"""Processor of QwenPI: the state is a tensor for the action head."""

from ...processing.processing_vla import VLAProcessor
from .configuration_qwen_pi import QwenPIConfig


class QwenPIProcessor(VLAProcessor):
    """Processor of [`QwenPIForActionPrediction`]. The normalised state goes to the action head, beside the prompt."""

    config_class = QwenPIConfig


__all__ = ["QwenPIProcessor"]
