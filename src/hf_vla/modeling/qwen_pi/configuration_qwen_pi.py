"""Configuration of QwenPI (Qwen-FM)."""

from ..configuration_vla import FlowMatchingConfig


class QwenPIConfig(FlowMatchingConfig):
    r"""
    Configuration of [`QwenPIForActionPrediction`]: StarVLA's QwenPI, also called Qwen-FM. Every backbone layer conditions one
    block of an action head that is as wide as the backbone; the robot's state is a token of the head. Fields that all
    flow-matching frameworks share are documented in [`~hf_vla.modeling.configuration_vla.FlowMatchingConfig`].

    Args:
        repeated_diffusion_steps (`int`, *optional*, defaults to 2):
            Noise draws per sample in a training step. StarVLA's QwenPI always uses 2.

    ```python
    >>> from hf_vla import QwenPIConfig, QwenPIForActionPrediction

    >>> config = QwenPIConfig(action_dim=7, action_horizon=16)
    >>> config.interleave_self_attention
    True
    ```
    """

    model_type = "qwen_pi"
    state_input = "head"

    repeated_diffusion_steps: int = 2


__all__ = ["QwenPIConfig"]
