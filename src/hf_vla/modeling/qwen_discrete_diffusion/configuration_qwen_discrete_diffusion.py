"""Configuration of QwenDiscreteDiffusion."""

from ..configuration_vla import DiffusionTransformerConfig

SCHEDULES = ("cosine", "linear")


class QwenDiscreteDiffusionConfig(DiffusionTransformerConfig):
    r"""
    Configuration of [`QwenDiscreteDiffusionForActionPrediction`]: StarVLA's QwenDiscreteDiffusion, masked token diffusion after
    MaskGIT (Chang et al. 2022). Each number of the chunk is a token, one of `num_bins`; as in QwenPI, every backbone layer
    conditions one block of an equally wide action head, here a classifier of masked tokens. Other fields are documented in
    [`~hf_vla.modeling.configuration_vla.DiffusionTransformerConfig`].

    Args:
        num_bins (`int`, *optional*, defaults to 256), action_low, action_high (`float`, *optional*, default to -1.0, 1.0):
            Bins of equal width in that range of normalised actions; what lies outside is trained as the outermost.
        num_inference_steps (`int`, *optional*, defaults to 8): Rounds of decoding.
        decode_schedule, train_mask_schedule (`str`, *optional*, default to `"cosine"`):
            "cosine" or "linear": how the number of masked tokens falls from round to round, and how it is drawn in training.
        decode_temperature (`float`, *optional*, defaults to 0.1): Of the bins' probabilities; 0 takes the most probable.
        choice_temperature (`float`, *optional*, defaults to 0.1):
            Of the Gumbel noise in the choice of the tokens to mask again. 0 masks the least confident, as MaskGIT. Above 0 it
            is as in StarVLA, which first masks tokens of earlier rounds again, then the most confident ones.
        use_simple_max (`bool`, *optional*, defaults to `False`): One round, with the most probable bins.
        no_mask_token_prob (`float`, *optional*, defaults to 0.0): In training, the probability that a masked token is shown.
        l1_loss_weight (`float`, *optional*, defaults to 0.1):
            Weight in the loss of the mean absolute error of the most probable bins. It has no gradient.
        sinusoidal_positions (`bool`, *optional*, defaults to `True`): See `DiffusionTransformer`.
        mask_padding (`bool`, *optional*, defaults to `True`):
            Keep the head from attending the padding of shorter prompts. StarVLA does not: there a sample's prediction depends on
            the other prompts of its batch, and its checkpoints are loaded with `False`. Alone, a sample gives the same with both.

    ```python
    >>> from hf_vla import QwenDiscreteDiffusionConfig, QwenDiscreteDiffusionForActionPrediction

    >>> config = QwenDiscreteDiffusionConfig(action_dim=7, action_horizon=16)
    >>> config.num_action_tokens
    112
    ```
    """

    model_type = "qwen_discrete_diffusion"
    state_input = "head"
    _action_tokens = "action_horizon * action_dim"
    at_least_one = (*DiffusionTransformerConfig.at_least_one, "num_bins")

    num_bins: int = 256
    action_low: float = -1.0
    action_high: float = 1.0
    num_inference_steps: int = 8
    repeated_diffusion_steps: int = 2
    decode_schedule: str = "cosine"
    train_mask_schedule: str = "cosine"
    decode_temperature: float = 0.1
    choice_temperature: float = 0.1
    use_simple_max: bool = False
    no_mask_token_prob: float = 0.0
    l1_loss_weight: float = 0.1
    sinusoidal_positions: bool = True
    mask_padding: bool = True

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        if not self.action_low < self.action_high:
            raise ValueError(
                f"action_low is {self.action_low}; it must be below action_high, which is {self.action_high}"
            )
        for name in ("decode_temperature", "choice_temperature", "l1_loss_weight"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be 0 or more")
        if not 0 <= self.no_mask_token_prob < 1:
            raise ValueError(f"no_mask_token_prob is {self.no_mask_token_prob}; it must be from 0 to below 1")
        for name in ("decode_schedule", "train_mask_schedule"):
            if getattr(self, name) not in SCHEDULES:
                raise ValueError(f"{name} is {getattr(self, name)!r}; known are {', '.join(map(repr, SCHEDULES))}")

    @property
    def num_action_tokens(self) -> int:
        """Tokens of a chunk: one per number."""
        return self.action_horizon * self.action_dim


__all__ = ["QwenDiscreteDiffusionConfig"]
