"""Configuration of QwenGR00T."""

from ..configuration_vla import DiTConfig


class QwenGR00TConfig(DiTConfig):
    r"""
    Configuration of [`QwenGR00TForActionPrediction`]: StarVLA's QwenGR00T, a dual system after GR00T N1.5. All blocks of the
    action head attend the backbone's last state; the robot's state is a token of the head. Fields are documented in
    [`~hf_vla.modeling.configuration_vla.DiTConfig`] and [`~hf_vla.modeling.configuration_vla.FlowMatchingConfig`].

    ```python
    >>> from hf_vla import QwenGR00TConfig, QwenGR00TForActionPrediction

    >>> config = QwenGR00TConfig(action_dim=7, action_horizon=8, action_hidden_size=1536, attention_head_dim=48)  # DiT-L
    >>> config.num_action_layers
    16
    ```
    """

    model_type = "qwen_gr00t"
    state_input = "head"


__all__ = ["QwenGR00TConfig"]
