"""What the frameworks share that regress actions: nothing is drawn, and the loss is the mean absolute error."""

import torch

from .losses import ActionTargets
from .modeling_vla import VLAPreTrainedModel
from .sampling import SamplingOptions


class RegressionPolicy(VLAPreTrainedModel):
    """Base of OFT and Adapter. A framework builds `self.vlm` and `self.action_head`, and writes `regress`."""

    def regress(self, input_ids, attention_mask, **inputs) -> torch.Tensor:
        """Return the actions (B, action_horizon, action_dim), normalised.

        Args: as for `action_loss`.
        """
        raise NotImplementedError

    def action_loss(self, targets: ActionTargets, **inputs) -> tuple[torch.Tensor, torch.Tensor]:
        return targets.mean((self.regress(**inputs).float() - targets.actions.float()).abs())

    def sample_actions(self, options: SamplingOptions, **inputs) -> torch.Tensor:
        return self.regress(**inputs)


__all__ = ["RegressionPolicy"]
