"""Base of the flow-matching frameworks."""

from .action_head import FlowMatchingActionHead
from .denoising_policy import DenoisingPolicy


class FlowMatchingPolicy(DenoisingPolicy):
    """Base of PI, PI_v3, GR00T and Dual; their head is a `FlowMatchingActionHead`."""

    action_head: FlowMatchingActionHead


__all__ = ["FlowMatchingPolicy"]
