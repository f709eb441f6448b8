"""QwenOFT in StarVLA's format."""

from typing import Any

from ...checkpoints.starvla_mapping import StarVLAMapping


class QwenOFTMapping(StarVLAMapping):
    """StarVLA's QwenOFT."""

    names = ("QwenOFT",)
    prefixes = {
        "action_model.model.mlp_resnet_blocks.": "action_head.blocks.",
        "action_model.model.": "action_head.",
        "action_model.": "action_head.",
    }
    default_horizon = 9

    def action_model(self, config) -> dict[str, Any]:
        return {
            "action_model_type": "MLP",
            "action_hidden_dim": config.vlm_hidden_size,
            **super().action_model(config),
        }


MAPPING = QwenOFTMapping()
