"""QwenPI_v3: every backbone layer -> its projector -> one block of a flow-matching diffusion transformer -> action chunk."""

import torch
from torch import nn

from .action_head import FlowMatchingActionHead
from .backbone import build_backbone, layer_states
from .configuration_qwen_pi_v3 import QwenPIV3Config
from .diffusion_transformer import Conditioning
from .modeling_vla import VLAOutput, VLAPreTrainedModel


class QwenPIV3ForActionPrediction(VLAPreTrainedModel):
    """StarVLA's QwenPI_v3. Block i of the action head attends the projected state h[i + 1] of the backbone."""

    config_class = QwenPIV3Config

    def __init__(self, config: QwenPIV3Config):
        super().__init__(config)
        width, head_width, num_layers = config.vlm_hidden_size, config.head_hidden_size, config.vlm_num_layers
        self.vlm = build_backbone(config.vlm_config)
        self.projectors = nn.ModuleList(
            nn.Identity() if width == head_width else nn.Sequential(nn.LayerNorm(width), nn.Linear(width, head_width))
            for _ in range(num_layers)
        )
        self.action_head = FlowMatchingActionHead(
            config, hidden_size=head_width, num_layers=num_layers, key_size=head_width
        )
        self.post_init()

    def _condition(self, input_ids, attention_mask, **vlm_inputs) -> Conditioning:
        convention = self.config.hidden_states_convention
        states = layer_states(self.vlm, convention, input_ids=input_ids, attention_mask=attention_mask, **vlm_inputs)
        dtype = self.action_head.dtype
        states = [project(state.to(dtype)) for project, state in zip(self.projectors, states[1:], strict=True)]
        return Conditioning(states, None if attention_mask is None else attention_mask.bool())

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        actions: torch.Tensor | None = None,
        action_mask: torch.Tensor | None = None,
        noise: torch.Tensor | None = None,
        timestep: torch.Tensor | None = None,
        **vlm_inputs,
    ) -> VLAOutput:
        """The flow-matching loss of a batch.

        Args:
            input_ids, attention_mask: (B, L).
            actions: (B, T, action_dim), normalised; the last `action_horizon` steps are the target.
            action_mask: boolean (B, T), false where a step is padding and does not count.
            noise, timestep: (R * B, H, action_dim) and (R * B,), tiled (b0 b1 … b0 b1 …), to fix the draw.
            vlm_inputs: the backbone's other inputs: `pixel_values`, `image_grid_thw`, `mm_token_type_ids`.
        """
        actions, action_mask = self.target_actions(actions, action_mask)
        conditioning = self._condition(input_ids, attention_mask, **vlm_inputs)
        loss = self.action_head.loss(conditioning, actions, noise=noise, timestep=timestep, action_mask=action_mask)
        return VLAOutput(loss=loss, action_loss=loss)

    @torch.no_grad()
    def predict_action(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        noise: torch.Tensor | None = None,
        generator: torch.Generator | None = None,
        num_inference_steps: int | None = None,
        actions: torch.Tensor | None = None,
        action_mask: torch.Tensor | None = None,
        **vlm_inputs,
    ) -> torch.Tensor:
        """Draw one action chunk a sample.

        Args:
            input_ids, attention_mask, vlm_inputs: as in `forward`.
            noise: (B, action_horizon, action_dim), drawn from `generator` where None.
            num_inference_steps: denoising steps, by default the config's.
            actions, action_mask: not read; a training batch may be passed as it is.

        Returns:
            float32 tensor (B, action_horizon, action_dim), normalised.
        """
        conditioning = self._condition(input_ids, attention_mask, **vlm_inputs)
        return self.action_head.sample(conditioning, noise=noise, generator=generator, num_steps=num_inference_steps)


__all__ = ["QwenPIV3ForActionPrediction"]
