"""Options of drawing an action chunk, and the data of a denoising step for callbacks."""

from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral, Real

import torch

from .real_time_chunking import RealTimeChunking


@dataclass
class DenoisingStep:
    """One Euler step of a flow-matching policy, for the `on_step` of `predict_action`.

    Args:
        index: 0 … N - 1 of N steps.
        time: flow time before the step, index / N: 0 is noise, 1 actions.
        noisy_actions, actions: before and after the step, float32 (B, action_horizon, action_dim), normalised; (R * B, …)
            if R draws of noise were given for each observation. With real-time chunking, the steps that are executed in the
            meantime are put into the chunk after the last denoising step.
        attention: with `output_attentions`, one entry per block of the action head, else empty. Float32 (B, heads, queries,
            keys), whose rows sum to 1; None for a block that attends the head's own tokens. Queries are the head's tokens,
            the last of which are the chunk's actions. Keys are the tokens of the prompt, in the order of `input_ids`; in
            QwenDual, DINO's patches follow.
    """

    index: int
    time: float
    noisy_actions: torch.Tensor
    actions: torch.Tensor
    attention: tuple[torch.Tensor | None, ...] = ()


@dataclass
class SamplingOptions:
    """The arguments of `predict_action` that say how actions are drawn, which documents them; `sample_actions` gets them.

    Raises:
        ValueError: `num_inference_steps` is below 1, or `output_attentions` has no `on_step` to give the weights to.
    """

    noise: torch.Tensor | None = None
    generator: torch.Generator | None = None
    num_inference_steps: int | None = None
    real_time_chunking: RealTimeChunking | None = None
    on_step: Callable[[DenoisingStep], None] | None = None
    output_attentions: bool = False
    guidance: float | None = None

    def __post_init__(self):
        guidance = self.guidance
        if guidance is not None and (not isinstance(guidance, Real) or isinstance(guidance, bool) or not guidance > 0):
            raise ValueError(f"guidance is {guidance!r}; it must be a number above 0, of which 1 is no guidance")
        steps = self.num_inference_steps
        if steps is not None and (not isinstance(steps, Integral) or isinstance(steps, bool) or steps < 1):
            raise ValueError(f"num_inference_steps is {steps!r}; it must be a whole number, at least 1")
        if self.output_attentions and self.on_step is None:
            raise ValueError(
                "output_attentions gives the weights to on_step; pass on_step, which is called after every step"
            )


@dataclass
class PreparedOptions(SamplingOptions):
    """Options after all that a compiled graph can't do: noise is drawn, tensors are on the device, numbers are checked.

    `num_inference_steps` is set. `noise` and real-time chunking are in the form that the framework's head takes. `generator` is
    None unless numbers can't be drawn in advance. `masked_after` is discrete diffusion's number of masked tokens after each round.
    """

    masked_after: tuple[int, ...] | None = None

    def __post_init__(self):
        pass  # checked before


def guided(conditional_and_plain: torch.Tensor, guidance: float) -> torch.Tensor:
    """Return plain + guidance (conditional - plain), (B, …), of both halves of (2 B, …) (classifier-free guidance, 2207.12598)."""
    conditional, plain = conditional_and_plain.chunk(2)
    return torch.lerp(plain, conditional, guidance)


__all__ = ["DenoisingStep", "PreparedOptions", "SamplingOptions", "guided"]
