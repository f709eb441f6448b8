"""Configuration of QwenAdapter."""

from ..configuration_vla import VLAConfig


class QwenAdapterConfig(VLAConfig):
    r"""
    Configuration of [`QwenAdapterForActionPrediction`]: StarVLA's QwenAdapter, after VLA-Adapter (Wang et al. 2025). Learned
    queries stand at the end of the prompt; each block of the action head attends one backbone layer's states of the queries and
    of the images, the latter through a gate. Fields that all frameworks share are documented in
    [`~hf_vla.modeling.configuration_vla.VLAConfig`]; with `state_dim` 0 there is no state encoder.

    Args:
        num_action_queries (`int`, *optional*, defaults to 64): Learned queries in the prompt.
        num_action_layers (`int`, *optional*, defaults to 24):
            Blocks of the action head, as wide as the backbone. Block i attends h[i + 1], if the backbone has that many layers.
        num_action_heads (`int`, *optional*, defaults to 8): Attention heads of a block.
        use_pro_version (`bool`, *optional*, defaults to `True`):
            Blocks with rotary positions, and projections of their own for queries and images; the gate is then on the images,
            else on the queries.
        mask_padding (`bool`, *optional*, defaults to `True`):
            Keep the head from attending the padding of shorter prompts. StarVLA does not: there a sample's prediction depends on
            the other prompts of its batch, and its checkpoints are loaded with `False`. Alone, a sample gives the same with both.
        action_token_id (`int`, *optional*):
            The first token id of the queries' placeholder in the tokenizer. Native checkpoints and `from_vlm` set it.

    ```python
    >>> from hf_vla import QwenAdapterConfig, QwenAdapterForActionPrediction

    >>> config = QwenAdapterConfig(action_dim=7, action_horizon=8, num_action_queries=32)
    >>> config.num_action_layers
    24
    ```
    """

    model_type = "qwen_adapter"
    state_input = "head"
    at_least_one = (*VLAConfig.at_least_one, "num_action_queries", "num_action_layers", "num_action_heads")

    num_action_queries: int = 64
    num_action_layers: int = 24
    num_action_heads: int = 8
    use_pro_version: bool = True
    mask_padding: bool = True
    action_token_id: int | None = None

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        if self.vlm_hidden_size % (2 * self.num_action_heads):
            raise ValueError(
                f"the backbone's width ({self.vlm_hidden_size}) does not divide into num_action_heads ({self.num_action_heads}) "
                "attention heads of an even width; choose another num_action_heads"
            )


__all__ = ["QwenAdapterConfig"]
