"""Base of the frameworks whose head denoises: loss and sampler, around the conditioning that each framework defines."""

import torch

from .action_head import DenoisingActionHead
from .diffusion_transformer import Conditioning
from .losses import ActionTargets
from .modeling_vla import VLAPreTrainedModel
from .sampling import PreparedOptions, SamplingOptions


class DenoisingPolicy(VLAPreTrainedModel):
    """Base of PI, PI_v3, GR00T, Dual and DiscreteDiffusion.

    A framework builds `self.vlm` and `self.action_head` in `__init__`, and defines in `conditioning` what the head reads.
    """

    sampling_options = frozenset(SamplingOptions.__dataclass_fields__) - {"guidance"}

    action_head: DenoisingActionHead

    def conditioning(self, input_ids, attention_mask, **inputs) -> Conditioning:
        """Return the states that each block of the head attends, in the head's dtype, and their mask.

        It is given the observation as `action_loss` is, but not the robot's state, which is a token of the head.
        """
        raise NotImplementedError

    def action_loss(self, targets: ActionTargets, *, state: torch.Tensor | None = None, **inputs):
        return self.action_head.loss(self.conditioning(**inputs), targets, state=state)

    def prepared_options(self, options: SamplingOptions, batch: int) -> PreparedOptions:
        return self.action_head.prepared(options, batch, self.device)

    def sample_actions(self, options: SamplingOptions, *, state: torch.Tensor | None = None, **inputs):
        return self.action_head.sample(self.conditioning(**inputs), options, state=state)


__all__ = ["DenoisingPolicy"]
