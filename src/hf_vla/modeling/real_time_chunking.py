"""What a caller may watch of denoising, and what he may ask of it."""

import math
from dataclasses import dataclass

import torch


@dataclass
class DenoisingStep:
    """One Euler step of a flow-matching policy, handed to the `on_step` of `predict_action`.

    Args:
        index: 0 … N - 1 of N steps.
        time: flow time before the step, index / N: 0 is noise, 1 actions.
        noisy_actions, actions: before and after the step, float32 (B, action_horizon, action_dim), normalised; (R * B, …)
            where R draws of noise were given for each observation. With real-time chunking, the steps that are executed
            meanwhile are put into the chunk after the last of these.
        attention: where `output_attentions`, one entry a block of the action head, else empty. Float32 (B, heads, queries,
            keys), each row of keys sums to 1; None for a block that attends the head's own tokens. Queries are the head's
            tokens, the chunk's actions the last of them. Keys are the tokens of the prompt, at the places of `input_ids`;
            in QwenDual, DINO's patches follow them.
    """

    index: int
    time: float
    noisy_actions: torch.Tensor
    actions: torch.Tensor
    attention: tuple[torch.Tensor | None, ...] = ()


def check_previous_chunk(
    previous_chunk: torch.Tensor | None, inference_delay: int, max_guidance_weight: float, shape: tuple[int, int, int]
) -> None:
    """Raise a ValueError where the arguments of real-time chunking do not fit chunks of `shape` (B, H, action_dim)."""
    if previous_chunk is None:
        if inference_delay:
            raise ValueError(
                f"inference_delay is {inference_delay}, but there is no previous_chunk whose actions are executed meanwhile; "
                "give it, or leave both out for an episode's first chunk"
            )
        return
    batch, horizon, dim = shape
    given = tuple(previous_chunk.shape)
    if len(given) != 3 or (given[0], given[2]) != (batch, dim) or not 1 <= given[1] <= horizon:
        raise ValueError(
            f"previous_chunk has shape {given}; give the normalised actions of the previous chunk from the step at which this "
            f"chunk begins, ({batch}, 1 to {horizon}, {dim}), or None where none are left"
        )
    if not previous_chunk.isfinite().all():
        raise ValueError("previous_chunk holds NaN or infinite numbers")
    if not 0 <= inference_delay <= given[1]:
        raise ValueError(
            f"inference_delay is {inference_delay}; it must be from 0 to the {given[1]} steps of previous_chunk, which are "
            "executed until the new chunk is there"
        )
    if not 0 <= max_guidance_weight < math.inf:
        raise ValueError(f"max_guidance_weight is {max_guidance_weight}; it must be a finite number, 0 or more")
    if torch.is_inference_mode_enabled():
        raise ValueError("real-time chunking needs gradients, which torch.inference_mode rules out; use torch.no_grad")


__all__ = ["DenoisingStep", "check_previous_chunk"]
