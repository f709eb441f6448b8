"""QwenFAST in StarVLA's format. The FAST tokenizer is not part of it: see [`QwenFASTProcessor`]."""

from typing import Any

from ...checkpoints.starvla_mapping import StarVLAMapping


class QwenFASTMapping(StarVLAMapping):
    """StarVLA's QwenFast."""

    names = ("QwenFast",)
    prediction_options = frozenset({"generation_constraint", "zeros_if_undecodable"})

    def action_model(self, config) -> dict[str, Any]:
        return {"action_model_type": "FAST", **super().action_model(config)}

    def image_size(self, tree: dict) -> None:
        return None  # StarVLA never resizes for FAST


MAPPING = QwenFASTMapping()
