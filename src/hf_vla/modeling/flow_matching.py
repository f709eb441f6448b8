"""Flow matching over action chunks (Lipman et al. 2023, as in pi-0, Black et al. 2024): noise, time, path, Euler steps.

Time runs from noise (t = 0) to actions (t = 1). No network is known here: a velocity is a function, given as an argument.
Source of every constant: StarVLA's `LayerwiseFM_ActionHeader` and `GR00T_ActionHeader`.
"""

from collections.abc import Callable

import torch


def sample_time(
    num: int, alpha: float, beta: float, scale: float, clamp: bool, device: torch.device | str | None = None
) -> torch.Tensor:
    """Draw training times `t = (s - u) / s` with `u ~ Beta(alpha, beta)` and `s = scale`.

    Args:
        num: how many.
        clamp: clamp `u` at `s`, as StarVLA's GR00T and Dual heads do. Its layer-wise heads do not, so t goes down to
            (s - 1) / s, slightly below 0.

    Returns:
        float32 tensor (num,).
    """
    u = torch.distributions.Beta(alpha, beta).sample([num])  # on the host, where a seed gives StarVLA's draw
    if device is not None and torch.device(device).type == "cuda" and not torch.compiler.is_compiling():
        u = u.pin_memory()  # from there it is copied without a wait
    u = u.to(device, non_blocking=True)
    if clamp:
        u = u.clamp(max=scale)
    return (scale - u) / scale


def interpolate(noise: torch.Tensor, actions: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
    """Return the point at `time` (broadcastable) on the straight path from `noise` to `actions`."""
    return (1 - time) * noise + time * actions


def time_to_bucket(time: torch.Tensor, num_buckets: int) -> torch.Tensor:
    """Return the integer timestep that the network is given: truncated towards zero, as in StarVLA."""
    return (time * num_buckets).long()


def inference_buckets(num_steps: int, num_buckets: int) -> list[int]:
    """Return the integer timesteps of `num_steps` Euler steps, for example 0, 250, 500, 750 for 4 steps and 1000 buckets."""
    return [int(step / float(num_steps) * num_buckets) for step in range(num_steps)]


def integrate(
    velocity: Callable[[torch.Tensor, int], torch.Tensor],
    noise: torch.Tensor,
    num_steps: int,
    on_step: Callable[[int, torch.Tensor, torch.Tensor], None] | None = None,
) -> torch.Tensor:
    """Integrate from noise to actions by Euler's method.

    Args:
        velocity: (x, step index) -> dx/dt, of x's shape.
        noise: x at t = 0, any shape; its dtype is that of the result.
        num_steps: number of steps, each of size 1 / num_steps.
        on_step: called after each step with its index, and x before and after it.
    """
    x = noise
    for step in range(num_steps):
        before, x = x, x + velocity(x, step).to(x.dtype) / num_steps
        if on_step is not None:
            on_step(step, before, x)
    return x
