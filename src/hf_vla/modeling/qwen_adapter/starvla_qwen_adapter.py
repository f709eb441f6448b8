"""QwenAdapter in StarVLA's format."""

from typing import Any

from ...checkpoints.starvla_mapping import StarVLAMapping, first_given, lookup


class QwenAdapterMapping(StarVLAMapping):
    """StarVLA's QwenAdapter."""

    names = ("QwenAdapter",)
    prefixes = {
        "action_query": "action_head.action_queries.weight",
        "proprio_projector.": "action_head.state_projector.",
        "action_model.action_chunk_embeddings": "action_head.chunk_embeddings.weight",
        "action_model.model.mlp_resnet_blocks.": "action_head.blocks.",
        "action_model.model.": "action_head.",
        "action_model.": "action_head.",
    }
    prediction_options = frozenset({"mask_padding"})
    action_model_fields = {
        "action_horizon": ("num_actions_chunk", 16),
        "num_action_queries": ("action_query_num", 64),
        "use_pro_version": ("use_pro_version", True),
    }

    def to_config(self, tree: dict) -> dict[str, Any]:
        action_model = lookup(tree, "framework.action_model") or {}
        state_dim = int(first_given(action_model.get("state_dim"), 14)) if action_model.get("use_proprio") else 0
        return {**super().to_config(tree), "state_dim": state_dim, "mask_padding": False}

    def action_model(self, config) -> dict[str, Any]:
        own = {"hidden_dim": config.vlm_hidden_size, "use_proprio": config.state_dim > 0}
        return {"action_model_type": "VLA_Adapter", **super().action_model(config), **own}


MAPPING = QwenAdapterMapping()
