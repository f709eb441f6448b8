"""Processor of QwenPI: the state is a tensor for the action head."""

from ...processing.processing_vla import VLAProcessor


class QwenPIProcessor(VLAProcessor):
    """Processor of [`QwenPIForActionPrediction`]. The normalised state goes to the action head, beside the prompt."""

    state_in_head = True


__all__ = ["QwenPIProcessor"]
