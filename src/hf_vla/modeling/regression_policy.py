"""Base of the frameworks that regress actions: nothing is drawn, and the loss is the mean absolute error."""

import torch

from .losses import ActionTargets
from .modeling_vla import VLAPreTrainedModel
from .sampling import SamplingOptions


class RegressionPolicy(VLAPreTrainedModel):
    """Base of OFT and Adapter. A framework builds `self.vlm` and `self.action_head`, and implements `regress`."""

    def regress(self, input_ids, attention_mask, **inputs) -> torch.Tensor:
        """Return the actions (B, action_horizon, action_dim), normalised. It is given the observation as `action_loss` is."""
        raise NotImplementedError

    def action_loss(self, targets: ActionTargets, **inputs) -> tuple[torch.Tensor, torch.Tensor]:
        return targets.mean((self.regress(**inputs).float() - targets.actions.float()).abs())

    def sample_actions(self, options: SamplingOptions, **inputs) -> torch.Tensor:
        return self.regress(**inputs)


__all__ = ["RegressionPolicy"]
