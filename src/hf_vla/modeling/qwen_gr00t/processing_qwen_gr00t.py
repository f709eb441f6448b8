"""Processor of QwenGR00T: the state is a tensor for the action head."""

from ...processing.processing_vla import VLAProcessor
from .configuration_qwen_gr00t import QwenGR00TConfig


class QwenGR00TProcessor(VLAProcessor):
    """Processor of [`QwenGR00TForActionPrediction`]. The normalised state goes to the action head, beside the prompt."""

    config_class = QwenGR00TConfig


__all__ = ["QwenGR00TProcessor"]
