"""QwenPI_v3: every backbone layer -> its projector -> one block of a flow-matching diffusion transformer -> action chunk."""

from torch import nn

from ..action_head import FlowMatchingActionHead
from ..backbone import build_backbone
from ..diffusion_transformer import Conditioning
from ..flow_matching_policy import FlowMatchingPolicy
from .configuration_qwen_pi_v3 import QwenPIV3Config


class QwenPIV3ForActionPrediction(FlowMatchingPolicy):
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

    def conditioning(self, input_ids, attention_mask, **inputs) -> Conditioning:
        states = self.backbone_states(input_ids, attention_mask, **inputs)[1:]
        dtype = self.action_head.dtype
        projected = [project(state.to(dtype)) for project, state in zip(self.projectors, states, strict=True)]
        return Conditioning.masked(projected, attention_mask)


__all__ = ["QwenPIV3ForActionPrediction"]
