"""Configuration of QwenDual."""

from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from ..configuration_vla import DiTConfig

_VITS14 = {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6, "image_size": 518, "patch_size": 14}


class QwenDualConfig(DiTConfig):
    r"""
    Configuration of [`QwenDualForActionPrediction`]: StarVLA's QwenDual. It is QwenGR00T whose action head also attends
    DINOv2's patch tokens of each camera image. Other fields are documented in
    [`~hf_vla.modeling.configuration_vla.DiTConfig`] and [`~hf_vla.modeling.configuration_vla.FlowMatchingConfig`].

    Args:
        dino_config (`dict` or `Dinov2Config`, *optional*):
            DINOv2's configuration, by default that of `facebook/dinov2-small` (Meta's `dinov2_vits14`).
        mask_padding (`bool`, *optional*, defaults to `False`):
            Whether padding of shorter prompts is masked in the action head. StarVLA's checkpoints were trained without this, so
            that a sample's prediction depends on how long the other prompts of its batch are.

    ```python
    >>> from hf_vla import QwenDualConfig, QwenDualForActionPrediction

    >>> config = QwenDualConfig(action_dim=7, action_horizon=8)
    >>> config.dino_config.hidden_size
    384
    ```
    """

    model_type = "qwen_dual"
    state_input = "head"
    sub_configs_defaults = {
        **DiTConfig.sub_configs_defaults,
        "dino_config": SubConfigSpec(config_class=AutoConfig, model_type="dinov2", init_kwargs=_VITS14),
    }

    dino_config: dict | PreTrainedConfig | None = None
    mask_padding: bool = False


__all__ = ["QwenDualConfig"]
