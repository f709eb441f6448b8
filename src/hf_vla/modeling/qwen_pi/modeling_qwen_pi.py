"""QwenPI (Qwen-FM): every backbone layer -> one block of an equally wide flow-matching transformer -> action chunk."""

from ..action_head import FlowMatchingActionHead
from ..backbone import build_backbone
from ..diffusion_transformer import Conditioning
from ..flow_matching_policy import FlowMatchingPolicy
from .configuration_qwen_pi import QwenPIConfig


class QwenPIForActionPrediction(FlowMatchingPolicy):
    """StarVLA's QwenPI. Block i of the action head, if it attends the backbone, attends its state h[i + 1]."""

    config_class = QwenPIConfig

    def __init__(self, config: QwenPIConfig):
        super().__init__(config)
        width = config.vlm_hidden_size
        self.vlm = build_backbone(config.vlm_config)
        self.action_head = FlowMatchingActionHead(
            config, hidden_size=width, num_layers=config.vlm_num_layers, key_size=width
        )
        self.post_init()

    def conditioning(self, input_ids, attention_mask, **inputs) -> Conditioning:
        states = self.backbone_states(input_ids, attention_mask, **inputs)[1:]
        states = [state.to(self.action_head.dtype) for state in states]
        return Conditioning.masked(states, attention_mask)


__all__ = ["QwenPIForActionPrediction"]
