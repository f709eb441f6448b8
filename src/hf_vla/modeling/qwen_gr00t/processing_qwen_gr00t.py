"""Processor of QwenGR00T: the state is a tensor for the action head."""

from ...processing.processing_vla import VLAProcessor


class QwenGR00TProcessor(VLAProcessor):
    """Processor of [`QwenGR00TForActionPrediction`]. The normalised state goes to the action head, beside the prompt."""

    state_in_head = True


__all__ = ["QwenGR00TProcessor"]
