"""QwenPI_v3 in StarVLA's format."""

from typing import Any

from ...checkpoints.starvla_mapping import first_given, lookup
from ..starvla_flow_matching import LayerwiseMapping


class QwenPIV3Mapping(LayerwiseMapping):
    """StarVLA's QwenPI_v3."""

    names = ("QwenPI_v3",)
    prefixes = {**LayerwiseMapping.prefixes, "project_layers.": "projectors."}
    interleave = False

    def repeated_diffusion_steps(self, tree: dict) -> int:
        return first_given(lookup(tree, "trainer.repeated_diffusion_steps"), 16)  # not action_model's

    def to_config(self, tree: dict) -> dict[str, Any]:
        # An explicit null means the backbone's width, silence the default.
        width = lookup(tree, "framework.action_model.diffusion_model_cfg.action_dit_hidden_dim", 1024)
        return {**super().to_config(tree), "action_hidden_size": width}

    def to_yaml(self, config) -> dict[str, dict[str, Any]]:
        return super().to_yaml(config) | {"trainer": {"repeated_diffusion_steps": config.repeated_diffusion_steps}}

    def width(self, config) -> int:
        return config.head_hidden_size

    def diffusion_model(self, config) -> dict[str, Any]:
        return {"action_dit_hidden_dim": config.action_hidden_size, **super().diffusion_model(config)}


MAPPING = QwenPIV3Mapping()
