"""Gaussian denoising transitions of flow-matching policies: Flow-SDE and Flow-Noise (piRL, 2510.25889; ReinFlow, 2505.22094).

Time runs from noise (0) to actions (1); a step goes from time k / K to (k + 1) / K.
"""

from functools import partial

import torch

from . import flow_matching
from .action_head import FlowMatchingActionHead
from .chunk_distributions import Generators, Trace, correlated, draw, draw_normal, gaussian_log_prob
from .diffusion_transformer import Conditioning
from .exploration import Exploration


def transition(
    x: torch.Tensor,
    velocity: torch.Tensor,
    step: torch.Tensor,
    number: torch.Tensor,
    level: float,
    correlation: float | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and standard deviation of Flow-SDE's step, whose marginals are those of the ODE.

    With time t and step size d, the noise that the velocity u points away from is e = x - t u. The score is -e / (1 - t), and
    the step N(x + d u - e s² d / (2 (1 - t)), s² d) with s = level √((1 - t) / t), where t is at least d in the denominator.
    If the noise of the chunk's steps i and j correlates by R_ij = correlation^|i - j|, the score is multiplied by R.

    Args:
        x, velocity: (B, M, H, A), float32.
        step, number: integers (B, M): k, and K.
        level: `a` of piRL.
        correlation: of the noise of neighbouring steps of the chunk; None is white noise.

    Returns:
        (B, M, H, A) and (B, M, 1, 1).
    """
    size = (1 / number)[..., None, None]
    time = (step / number)[..., None, None]
    diffusion = level * ((1 - time) / torch.maximum(time, size)).sqrt()
    score = -(x - time * velocity) / (1 - time)
    if correlation:
        places = torch.arange(x.shape[-2], device=x.device)
        score = correlation ** (places[:, None] - places).abs() @ score
    return x + size * velocity + score * diffusion**2 * size / 2, diffusion * size.sqrt()


def noisy_steps(which: str, batch: int, number: int, generator: Generators, device) -> torch.Tensor:
    """Return the indices of the noisy ones of `number` denoising steps, integers (B, M), ascending."""
    if which == "all":
        return torch.arange(number, device=device).expand(batch, -1)
    if which == "last":
        return torch.full((batch, 1), number - 1, device=device)
    return draw(partial(torch.randint, number), (batch, 1), generator, device)


class FlowExploration:
    """One way to explore with one head and one conditioning.

    Args:
        exploration: of the policy, checked.
        conditioning: states of B observations; for `draw`, which calls the head in each step, with keys and values prepared.
        state: (B, 1, state_dim), normalised, or None.
    """

    def __init__(
        self,
        head: FlowMatchingActionHead,
        exploration: Exploration,
        conditioning: Conditioning,
        state: torch.Tensor | None,
    ):
        self.head, self.exploration, self.conditioning, self.state = head, exploration, conditioning, state
        self.stds = None
        if exploration.learned_std is not None:
            self.stds = exploration.learned_std(pooled(conditioning))

    def moments(
        self, x: torch.Tensor, step: torch.Tensor, number: torch.Tensor, timestep: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the Euler step's end, and mean and std of the noisy step: (B, M, H, A) twice, and one that fits.

        Args:
            x: (B, M, H, A), at M steps of each observation.
            step, number, timestep: integers (B, M): k, K, and what the network is told.
        """
        velocity = self.head.velocity(x, timestep, self.conditioning, state=self.state).float()
        euler = x + velocity / number[..., None, None]
        if self.stds is not None:
            stds = self.stds.expand(len(x), -1, -1).take_along_dim(step[..., None], dim=1)
            return euler, euler, stds[:, :, None]
        level = 0.5 if self.exploration.noise_level is None else self.exploration.noise_level
        return euler, *transition(x, velocity, step, number, level, self.exploration.noise_correlation)

    def log_prob(self, trace: Trace) -> torch.Tensor:
        """Sum log N(x_{k+1}; mean(x_k), std) over the noisy steps, which are rows of one call of the network: (B,)."""
        _, mean, std = self.moments(trace["before"], trace["step"], trace["number"], trace["timestep"])
        exploration = self.exploration
        return gaussian_log_prob(trace["after"], mean, std, exploration.executed_steps, exploration.noise_correlation)

    def draw(self, generator: Generators) -> tuple[torch.Tensor, Trace]:
        """Return chunks (B, H, A) and their trace: before and after each of M noisy steps (B, M, H, A), and which these are."""
        config, device = self.head.config, self.conditioning.states[0].device
        batch = len(self.conditioning.states[0])
        number = self.exploration.num_inference_steps or config.num_inference_steps
        if self.stds is not None and self.stds.shape[1] != number:
            raise ValueError(
                f"learned_std is of {self.stds.shape[1]} denoising steps, this exploration of {number}; make it by "
                f"policy.new_learned_std(num_steps={number})"
            )
        shape = (batch, 1, config.action_horizon, config.action_dim)
        noisy = noisy_steps(self.exploration.noisy_steps or "last", batch, number, generator, device)
        buckets = torch.tensor(flow_matching.inference_buckets(number, config.num_timestep_buckets), device=device)
        chain = [draw_normal(shape, generator, device)]
        for index in range(number):
            step = torch.full((batch, 1), index, device=device)
            euler, mean, std = self.moments(chain[-1], step, torch.full_like(step, number), buckets[step])
            is_noisy = (noisy == index).any(dim=1)[:, None, None, None]
            noise = correlated(draw_normal(shape, generator, device), self.exploration.noise_correlation)
            chain.append(torch.where(is_noisy, mean + std * noise, euler))
        chain = torch.cat(chain, dim=1)
        places = noisy[..., None, None]
        return chain[:, -1], {
            "before": chain.take_along_dim(places, dim=1),
            "after": chain.take_along_dim(places + 1, dim=1),
            "step": noisy,
            "number": torch.full_like(noisy, number),
            "timestep": buckets[noisy],
        }


def pooled(conditioning: Conditioning) -> torch.Tensor:
    """Return the mean of the last states that are attended (B, key_size), without gradient."""
    states, mask = conditioning.states[-1].detach().float(), conditioning.key_mask
    if mask is None:
        return states.mean(dim=1)
    weight = mask[..., None].float()
    return (states * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1)


__all__ = ["FlowExploration", "noisy_steps", "pooled", "transition"]
