"""Real-time chunking: Black, Galliker, Levine 2025, "Real-Time Execution of Action Chunking Flow Policies", arXiv 2506.07339.

The guidance is the pseudoinverse guidance (PiGDM) of Song et al. 2023 and Pokle et al. 2024.
"""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral, Real

import torch
from torch import nn

Velocity = Callable[[torch.Tensor, int], torch.Tensor]


@dataclass
class RealTimeChunking:
    """The previous chunk, which the new one is to continue: part of it is executed while the new one is computed.

    See `docs/real_time_chunking.md`.

    Args:
        previous_chunk: (B, H', action_dim), normalised, 1 <= H' <= action_horizon: the part of the previous chunk that was not
            yet executed when the observation was taken. Its step i is step i of the new chunk. Steps from H' on are free;
            pass fewer steps to leave more of them free.
        inference_delay: d, 0 <= d <= H', the steps of `previous_chunk` that are executed before the new chunk is ready. They
            have full weight, and are returned as given; execute the new chunk from step d on. The weight then decays, see
            [`overlap_weights`].
        max_guidance_weight: beta of the paper, with its default. If it is larger than `num_inference_steps`, guidance can
            overshoot; 0 switches guidance off.

    Raises:
        ValueError: `previous_chunk` is missing, is not (B, H', action_dim) or holds NaN; `inference_delay` or
            `max_guidance_weight` is out of range.
    """

    previous_chunk: torch.Tensor
    inference_delay: int = 0
    max_guidance_weight: float = 5.0

    def __post_init__(self):
        previous, delay, weight = self.previous_chunk, self.inference_delay, self.max_guidance_weight
        if not isinstance(delay, Integral) or isinstance(delay, bool):
            raise ValueError(f"inference_delay is {delay!r}; give a whole number of steps, 0 or more")
        if previous is None:
            raise ValueError(
                f"inference_delay is {delay}, but there is no previous_chunk whose actions are executed in the meantime; give "
                "it, or leave both out for the first chunk of an episode"
            )
        if not isinstance(previous, torch.Tensor) or previous.ndim != 3:
            given = f"has shape {tuple(previous.shape)}" if hasattr(previous, "shape") else f"is {previous!r:.80}"
            raise ValueError(f"previous_chunk {given}; give a tensor (B, H', action_dim)")
        if not previous.isfinite().all():
            raise ValueError("previous_chunk holds NaN or infinite numbers")
        if not 0 <= delay <= previous.shape[1]:
            raise ValueError(
                f"inference_delay is {delay}; it must be from 0 to the {previous.shape[1]} steps of previous_chunk, which are "
                "executed until the new chunk is ready"
            )
        if not isinstance(weight, Real) or not 0 <= weight < math.inf:
            raise ValueError(f"max_guidance_weight is {weight!r}; it must be a finite number, 0 or more")

    @classmethod
    def from_arguments(cls, arguments: dict) -> "RealTimeChunking | None":
        """Pop the three fields from keyword arguments; None if these hold neither a previous chunk nor a delay.

        Raises:
            ValueError: `max_guidance_weight` is given without `previous_chunk`, which may be None for an episode's first chunk.
        """
        given = {name: arguments.pop(name) for name in _ARGUMENTS if name in arguments}
        if "max_guidance_weight" in given and "previous_chunk" not in given:
            raise ValueError(
                f"max_guidance_weight is {given['max_guidance_weight']!r}, but there is no previous_chunk that guides; give it (None "
                "for the first chunk of an episode), or leave out both"
            )
        if given.get("previous_chunk") is None and not given.get("inference_delay"):
            return None
        return cls(**{"previous_chunk": None, **given})

    def for_chunks(self, shape: tuple[int, int, int], copies: int, device: torch.device | str) -> "RealTimeChunking":
        """Return the same for `copies` chunks per sample in tiled order, in float32 on `device`.

        Raises:
            ValueError: `previous_chunk` does not fit chunks of `shape` (B, H, action_dim), or inference mode rules out gradients.
        """
        batch, horizon, dim = shape
        given = tuple(self.previous_chunk.shape)
        if (given[0], given[2]) != (batch, dim) or not 1 <= given[1] <= horizon:
            raise ValueError(
                f"previous_chunk has shape {given}; give the normalised actions of the previous chunk from the step at which "
                f"this chunk begins, ({batch}, 1 to {horizon}, {dim}), or None if none are left"
            )
        if torch.is_inference_mode_enabled():
            raise ValueError(
                "real-time chunking needs gradients, which torch.inference_mode rules out; use torch.no_grad"
            )
        previous = self.previous_chunk.to(device, torch.float32).repeat(copies, 1, 1)
        return dataclasses.replace(self, previous_chunk=previous)

    def guidance(self, horizon: int) -> "Guidance":
        """Return what pulls chunks of `horizon` steps towards the previous one; it holds numbers of samples as this does."""
        previous = self.previous_chunk
        overlap, device = previous.shape[1], previous.device
        free = (0, 0, 0, horizon - overlap)
        weights = overlap_weights(overlap, self.inference_delay, device)[:, None]
        executed = torch.arange(horizon, device=device)[:, None] < self.inference_delay
        pad = nn.functional.pad
        return Guidance(pad(previous, free), pad(weights, free), executed, self.max_guidance_weight)

    def with_executed(self, chunk: torch.Tensor) -> torch.Tensor:
        """Replace the chunk's first steps by those that the robot executes meanwhile, to which guidance only comes near."""
        delay = self.inference_delay
        return torch.cat([self.previous_chunk[:, :delay], chunk[:, delay:]], dim=1)


_ARGUMENTS = tuple(field.name for field in dataclasses.fields(RealTimeChunking))


@dataclass
class Guidance:
    """Real-time chunking as tensors of fixed shapes, so that one compiled graph serves every delay and overlap.

    Args:
        previous_chunk: (B, H, action_dim), whatever it holds at steps without weight.
        weights: (H, 1) of [`overlap_weights`], 0 after the overlap.
        executed: boolean (H, 1), the steps that are executed in the meantime.
        max_guidance_weight: as in [`RealTimeChunking`].
    """

    previous_chunk: torch.Tensor
    weights: torch.Tensor
    executed: torch.Tensor
    max_guidance_weight: float

    def guide(self, velocity: Velocity, num_steps: int) -> Velocity:
        """Return a velocity that also pulls the beginning of the chunk towards the previous one (Black et al. 2025, Eq. 2).

        At each step it adds `guidance_weight(t) · (W (Y - x̂))ᵀ ∂x̂/∂x`, where `x̂ = x + (1 - t) v(x, t)` is the action chunk
        that the velocity points to, Y the previous chunk and W the `overlap_weights`. The product with the derivative takes
        one backward pass through `velocity`. No parameter receives a gradient.

        Args:
            velocity: (x, step index) -> dx/dt; the samples of a batch must not depend on each other.
            num_steps: Euler steps; step k is at time k / num_steps.
        """

        def guided(x: torch.Tensor, step: int) -> torch.Tensor:
            time = step / num_steps

            def denoise(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
                v = velocity(x, step).to(x.dtype)
                return x + (1 - time) * v, v

            denoised, pull_back, v = torch.func.vjp(denoise, x, has_aux=True)
            (correction,) = pull_back(self.weights * (self.previous_chunk - denoised))
            return v + guidance_weight(time, self.max_guidance_weight) * correction

        return guided

    def with_executed(self, chunk: torch.Tensor) -> torch.Tensor:
        """As `RealTimeChunking.with_executed`."""
        return torch.where(self.executed, self.previous_chunk, chunk)


def overlap_weights(overlap: int, inference_delay: int, device: torch.device | str | None = None) -> torch.Tensor:
    """Return the weight of each step of the previous chunk: the soft mask of real-time chunking (Black et al. 2025, Eq. 5).

    It is 1 for the first `inference_delay` = d steps, then `c (e^c - 1) / (e - 1)`, where
    `c = (overlap - i) / (overlap - d + 1)` falls linearly from 1 at step d - 1 to 0 at step `overlap`, after the last.

    Args:
        overlap: steps that the previous chunk and the new one share (H - s in the paper).
        inference_delay: 0 … overlap.

    Returns:
        float32 tensor (overlap,).
    """
    left = torch.arange(overlap, 0, -1, dtype=torch.float32, device=device)
    c = (left / (overlap - inference_delay + 1)).clamp(max=1)
    return c * torch.expm1(c) / math.expm1(1)


def guidance_weight(time: float, max_weight: float) -> float:
    """Return `min(max_weight, (1 - t) / (t r²))`, `r² = (1 - t)² / (t² + (1 - t)²)`, at 0 <= t < 1 (Black et al. 2025, Eq. 2 and 4)."""
    if time == 0:
        return max_weight
    return min(max_weight, (time**2 + (1 - time) ** 2) / (time * (1 - time)))


__all__ = ["Guidance", "RealTimeChunking", "guidance_weight", "overlap_weights"]
