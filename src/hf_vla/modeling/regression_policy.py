"""Base of the frameworks that regress actions: nothing is drawn, and the loss is the mean absolute error."""

import math

import torch

from .chunk_distributions import correlated, draw_normal, gaussian_log_prob
from .exploration import Exploration
from .losses import ActionTargets
from .modeling_vla import VLAPreTrainedModel
from .sampling import SamplingOptions


class RegressionPolicy(VLAPreTrainedModel):
    """Base of OFT and Adapter. A framework builds `self.vlm` and `self.action_head`, and implements `regress`.

    It explores by a Gaussian around the regressed chunk.
    """

    exploration_settings = frozenset({"std", "noise_correlation", "learned_std", "executed_steps"})
    trace_entries = ("actions",)

    def regress(self, input_ids, attention_mask, **inputs) -> torch.Tensor:
        """Return the actions (B, action_horizon, action_dim), normalised. It is given the observation as `action_loss` is."""
        raise NotImplementedError

    def action_loss(self, targets: ActionTargets, **inputs) -> tuple[torch.Tensor, torch.Tensor]:
        return targets.mean((self.regress(**inputs).float() - targets.actions.float()).abs())

    def sample_actions(self, options: SamplingOptions, **inputs) -> torch.Tensor:
        return self.regress(**inputs)

    def draw_chunk(self, exploration, generator, **inputs):
        mean = self.regress(**inputs).float()
        std = self._std(exploration, mean)
        noise = draw_normal(mean.shape, generator, mean.device)
        actions = mean + std * correlated(noise, exploration.noise_correlation)
        return actions, self._log_prob(actions, mean, exploration), {"actions": actions}

    def log_prob_of(self, trace, exploration, **inputs) -> torch.Tensor:
        return self._log_prob(trace["actions"], self.regress(**inputs).float(), exploration)

    def _log_prob(self, actions: torch.Tensor, mean: torch.Tensor, exploration: Exploration) -> torch.Tensor:
        std, correlation = self._std(exploration, mean), exploration.noise_correlation
        return gaussian_log_prob(actions, mean, std, exploration.executed_steps, correlation)

    @staticmethod
    def _std(exploration: Exploration, mean: torch.Tensor) -> torch.Tensor:
        """Of each number of the chunk, broadcastable to its mean (B, H, A)."""
        if exploration.learned_std is not None:
            return exploration.learned_std()
        return mean.new_tensor(math.exp(-2.5) if exploration.std is None else exploration.std)


__all__ = ["RegressionPolicy"]
