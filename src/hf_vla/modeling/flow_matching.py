"""Flow matching over action chunks (Lipman et al. 2023, as in pi-0, Black et al. 2024): noise, time, path, Euler steps.

Time runs from noise (t = 0) to actions (t = 1). Nothing here knows a network: a velocity is a function that is handed in.
Source of every constant: StarVLA's `LayerwiseFM_ActionHeader` and `GR00T_ActionHeader`.

The last three functions are real-time chunking: Black, Galliker, Levine 2025, "Real-Time Execution of Action Chunking Flow
Policies", arXiv 2506.07339, on the pseudoinverse guidance (PiGDM) of Song et al. 2023 and Pokle et al. 2024.
"""

import math
from collections.abc import Callable

import torch


def sample_time(
    num: int, alpha: float, beta: float, scale: float, clamp: bool, device: torch.device | str | None = None
) -> torch.Tensor:
    """Draw training times `t = (s - u) / s` with `u ~ Beta(alpha, beta)` and `s = scale`.

    Args:
        num: how many.
        clamp: cut `u` at `s`, as StarVLA's GR00T and Dual heads do. Its layer-wise heads do not, so that t reaches
            (s - 1) / s, slightly below 0.

    Returns:
        float32 tensor (num,).
    """
    u = torch.distributions.Beta(alpha, beta).sample([num]).to(device)
    if clamp:
        u = u.clamp(max=scale)
    return (scale - u) / scale


def interpolate(noise: torch.Tensor, actions: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
    """The point at `time` (broadcastable) on the straight path from `noise` to `actions`."""
    return (1 - time) * noise + time * actions


def time_to_bucket(time: torch.Tensor, num_buckets: int) -> torch.Tensor:
    """The integer timestep that the network is told: truncation towards zero, as in StarVLA."""
    return (time * num_buckets).long()


def inference_buckets(num_steps: int, num_buckets: int) -> list[int]:
    """The integer timesteps of `num_steps` Euler steps, for example 0, 250, 500, 750 for 4 steps of 1000 buckets."""
    return [int(step / float(num_steps) * num_buckets) for step in range(num_steps)]


def integrate(
    velocity: Callable[[torch.Tensor, int], torch.Tensor],
    noise: torch.Tensor,
    num_steps: int,
    on_step: Callable[[int, torch.Tensor, torch.Tensor], None] | None = None,
) -> torch.Tensor:
    """Euler integration from noise to actions.

    Args:
        velocity: (x, step index) -> dx/dt, of x's shape.
        noise: x at t = 0, any shape; its dtype is the integrator's.
        num_steps: equal steps of size 1 / num_steps.
        on_step: called after each step with its index and x before and after it.
    """
    x = noise
    for step in range(num_steps):
        before, x = x, x + velocity(x, step).to(x.dtype) / num_steps
        if on_step is not None:
            on_step(step, before, x)
    return x


def overlap_weights(overlap: int, inference_delay: int, device: torch.device | str | None = None) -> torch.Tensor:
    """How much each step of the previous chunk counts: the soft mask of real-time chunking (Black et al. 2025, Eq. 5).

    1 for the first `inference_delay` = d steps; then `c (e^c - 1) / (e - 1)`, where `c = (overlap - i) / (overlap - d + 1)`
    falls linearly from 1 at step d - 1 to 0 at step `overlap`, behind the last.

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
    """`min(max_weight, (1 - t) / (t r²))`, `r² = (1 - t)² / (t² + (1 - t)²)`, at 0 <= t < 1 (Black et al. 2025, Eq. 2 and 4)."""
    if time == 0:
        return max_weight
    return min(max_weight, (time**2 + (1 - time) ** 2) / (time * (1 - time)))


def guide(
    velocity: Callable[[torch.Tensor, int], torch.Tensor],
    previous_chunk: torch.Tensor,
    inference_delay: int,
    num_steps: int,
    max_guidance_weight: float,
) -> Callable[[torch.Tensor, int], torch.Tensor]:
    """A velocity that also draws the beginning of the chunk to `previous_chunk` (Black et al. 2025, Eq. 2).

    At each step it adds `guidance_weight(t) · (W (Y - x̂))ᵀ ∂x̂/∂x`, where `x̂ = x + (1 - t) v(x, t)` is the action chunk that
    the velocity now points to, Y the previous chunk and W the `overlap_weights`. The derivative is the velocity's own, by
    one backward pass; gradients are enabled for the call of `velocity` alone, and no parameter receives one.

    Args:
        velocity: (x, step index) -> dx/dt; samples of a batch must not depend on each other.
        previous_chunk: (B, overlap, action_dim), the steps that the new chunk's first ones coincide with.
        inference_delay: steps of it with full weight.
        num_steps: Euler steps; step k is at time k / num_steps.
        max_guidance_weight: beta of the paper.
    """
    overlap = previous_chunk.shape[1]
    weights = overlap_weights(overlap, inference_delay, previous_chunk.device)[:, None]

    def guided(x: torch.Tensor, step: int) -> torch.Tensor:
        time = step / num_steps
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            v = velocity(x, step).to(x.dtype)
            denoised = (x + (1 - time) * v)[:, :overlap]
        error = weights * (previous_chunk - denoised.detach())
        (correction,) = torch.autograd.grad(denoised, x, error)
        return v.detach() + guidance_weight(time, max_guidance_weight) * correction

    return guided
