"""Configuration of QwenFAST."""

from ..configuration_vla import VLAConfig

GENERATION_CONSTRAINTS = (None, "tokens", "length")


class QwenFASTConfig(VLAConfig):
    r"""
    Configuration of [`QwenFASTForActionPrediction`]: StarVLA's QwenFast, after pi-0-FAST (Pertsch et al. 2025). Actions are
    words of the backbone's language, which it generates. Fields that all frameworks share are documented in
    [`~hf_vla.modeling.configuration_vla.VLAConfig`]; the robot's state is not used.

    Args:
        action_token_offset (`int`, *optional*):
            The id of FAST token 0 in the backbone's vocabulary. Native checkpoints and `from_vlm` set it.
        num_action_tokens (`int`, *optional*, defaults to 2048):
            Number of words for FAST tokens in the backbone's vocabulary; the FAST tokenizer may use fewer.
        end_token_id (`int`, *optional*):
            The token that ends a generation. Defaults to the end-of-sequence token of the backbone's text configuration.
        fast_codebook (`dict`, *optional*):
            The part of the FAST tokenizer that decodes generated tokens: `FastActionTokenizer.codebook()`. Native checkpoints
            and `from_vlm` set it.
        generation_constraint (`str`, *optional*, defaults to `"tokens"`):
            `"tokens"`: only action tokens and the end token are generated. `"length"`: they also spell exactly
            `action_horizon * action_dim` coefficients, so that every generation can be decoded, even a poor one. `None`: any
            token.
        zeros_if_undecodable (`bool`, *optional*, defaults to `False`):
            Whether to predict zeros, as StarVLA does, instead of raising an error if a generation can't be decoded.

    ```python
    >>> from hf_vla import QwenFASTConfig, QwenFASTForActionPrediction

    >>> config = QwenFASTConfig(action_dim=7, action_horizon=16, generation_constraint="length")
    >>> config.num_action_tokens
    2048
    ```
    """

    model_type = "qwen_fast"

    action_token_offset: int | None = None
    num_action_tokens: int = 2048
    end_token_id: int | None = None
    fast_codebook: dict | None = None
    generation_constraint: str | None = "tokens"
    zeros_if_undecodable: bool = False

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        if self.generation_constraint not in GENERATION_CONSTRAINTS:
            raise ValueError(
                f"generation_constraint is {self.generation_constraint!r}; "
                f"known are {', '.join(map(repr, GENERATION_CONSTRAINTS))}"
            )
        text_config = self.vlm_config.get_text_config()
        if self.end_token_id is None:
            end = getattr(text_config, "eos_token_id", None)
            self.end_token_id = end[0] if isinstance(end, list) else end
        if self.action_token_offset is not None:
            needed = self.action_token_offset + self.num_action_tokens
            if text_config.vocab_size < needed:
                raise ValueError(
                    f"the backbone's vocabulary of {text_config.vocab_size} tokens does not hold the action tokens "
                    f"{self.action_token_offset} to {needed - 1}: take a backbone that has them (such as "
                    "StarVLA/Qwen3-VL-4B-Instruct-Action), or enlarge it with vlm.resize_token_embeddings"
                )
        if self.fast_codebook is not None and len(self.fast_codebook["vocabulary"]) > self.num_action_tokens:
            raise ValueError(
                f"the FAST tokenizer has {len(self.fast_codebook['vocabulary'])} tokens, the backbone's vocabulary "
                f"words for {self.num_action_tokens}; fit one with vocab_size={self.num_action_tokens} or less"
            )


__all__ = ["QwenFASTConfig"]
