"""QwenDiscreteDiffusion in StarVLA's format."""

from typing import Any

from ...checkpoints.starvla_mapping import first_given, lookup
from ..starvla_flow_matching import DenoisingMapping


class QwenDiscreteDiffusionMapping(DenoisingMapping):
    """StarVLA's QwenDiscreteDiffusion."""

    names = ("QwenDiscreteDiffusion",)
    prefixes = {"action_model.binning.bin_centers": "action_head.bin_centers", **DenoisingMapping.prefixes}
    prediction_options = frozenset({"mask_padding", "decode_temperature", "choice_temperature"})
    positional_embeddings = ("sinusoidal", None)
    action_model_fields = {
        **DenoisingMapping.action_model_fields,
        "num_inference_steps": ("num_inference_steps", 8),
        "num_bins": ("num_bins", 256),
        "action_low": ("action_low", -1.0),
        "action_high": ("action_high", 1.0),
        "train_mask_schedule": ("train_mask_schedule", "cosine"),
        "decode_schedule": ("decode_schedule", "cosine"),
        "no_mask_token_prob": ("no_mask_token_prob", 0.0),
        "l1_loss_weight": ("l1_loss_weight", 0.1),
        "use_simple_max": ("use_simple_max", False),
    }

    def repeated_diffusion_steps(self, tree: dict) -> int:
        return first_given(lookup(tree, "framework.action_model.repeated_diffusion_steps"), 2)

    def to_config(self, tree: dict) -> dict[str, Any]:
        action_model = lookup(tree, "framework.action_model") or {}
        if (representation := action_model.get("representation", "bin")) != "bin":
            raise ValueError(f"action_model.representation is {representation!r}; StarVLA itself can only train 'bin'")
        positions = lookup(action_model, "diffusion_model_cfg.positional_embeddings", "sinusoidal")
        own = {"sinusoidal_positions": positions is not None, "mask_padding": False}
        return {**super().to_config(tree), **own}

    def action_model(self, config) -> dict[str, Any]:
        return {"action_model_type": "LayerwiseDD", "representation": "bin", **super().action_model(config)}

    def diffusion_model(self, config) -> dict[str, Any]:
        positions = "sinusoidal" if config.sinusoidal_positions else None
        return {**super().diffusion_model(config), "positional_embeddings": positions, "output_dim": config.num_bins}


MAPPING = QwenDiscreteDiffusionMapping()
