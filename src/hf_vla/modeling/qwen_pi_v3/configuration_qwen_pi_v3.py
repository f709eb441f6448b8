"""Configuration of QwenPI_v3."""

from ..configuration_vla import FlowMatchingConfig


class QwenPIV3Config(FlowMatchingConfig):
    r"""
    Configuration of [`QwenPIV3ForActionPrediction`]: StarVLA's QwenPI_v3. Every backbone layer conditions one block of the
    action head through its own projector; the robot's state is text in the prompt. Fields that all flow-matching frameworks
    share are documented in [`~hf_vla.modeling.configuration_vla.FlowMatchingConfig`].

    Args:
        action_hidden_size (`int`, *optional*, defaults to 1024):
            Width of the action head. `None`, or the backbone's width, means the backbone's width without projectors.
        repeated_diffusion_steps (`int`, *optional*, defaults to 16):
            Noise draws per sample in a training step.
        interleave_self_attention (`bool`, *optional*, defaults to `False`):
            See `FlowMatchingConfig`.

    ```python
    >>> from hf_vla import QwenPIV3Config, QwenPIV3ForActionPrediction

    >>> config = QwenPIV3Config(action_dim=7, action_horizon=16)
    >>> config.num_inference_steps
    4
    >>> config.vlm_config.model_type
    'qwen3_vl'
    ```
    """

    model_type = "qwen_pi_v3"
    state_input = "prompt"

    action_hidden_size: int | None = 1024
    repeated_diffusion_steps: int = 16
    interleave_self_attention: bool = False

    @property
    def head_hidden_size(self) -> int:
        """Width of the action head's tokens."""
        return self.action_hidden_size or self.vlm_hidden_size


__all__ = ["QwenPIV3Config"]
