"""Configuration of QwenOFT."""

from ..configuration_vla import VLAConfig


class QwenOFTConfig(VLAConfig):
    r"""
    Configuration of [`QwenOFTForActionPrediction`]: StarVLA's QwenOFT, after OpenVLA-OFT (Kim et al. 2025). The prompt holds
    one placeholder per action of the chunk, and an MLP regresses the action from the backbone's last state there. The
    robot's state is text in the prompt. Fields that all frameworks share are documented in
    [`~hf_vla.modeling.configuration_vla.VLAConfig`].

    Args:
        action_token_id (`int`, *optional*):
            The first token id of the placeholder in the backbone's tokenizer. Native checkpoints and `from_vlm` set it.

    ```python
    >>> from hf_vla import QwenOFTConfig, QwenOFTForActionPrediction

    >>> config = QwenOFTConfig(action_dim=7, action_horizon=8, action_token_id=1234)
    >>> config.action_horizon
    8
    ```
    """

    model_type = "qwen_oft"
    state_input = "prompt"

    action_token_id: int | None = None


__all__ = ["QwenOFTConfig"]
