"""How a policy explores when it learns by acting: what the density of a sampled action chunk depends on."""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from numbers import Integral, Real

import torch
from torch import nn

NOISY_STEPS = ("last", "all", "one")


class LearnedStd(nn.Module):
    """Standard deviations of exploration that are learned with the policy, and dropped after training.

    There is one for each denoising step and action dimension, exp(low + (high - low) (1 + tanh(z)) / 2) between the logarithms
    of two bounds, as in ReinFlow (2505.22094). A policy that regresses its actions has one step.

    Args:
        action_dim: dimensions of an action.
        num_steps: denoising steps.
        feature_size: width of the features of the observation from which `z` is also computed; None if it depends on none.
        min_std, max_std: the bounds, in normalised units. Both start in their geometric middle.
    """

    def __init__(
        self,
        action_dim: int,
        num_steps: int = 1,
        feature_size: int | None = None,
        min_std: float = 0.08,
        max_std: float = 0.16,
    ):
        super().__init__()
        if not 0 < min_std < max_std:
            raise ValueError(f"min_std is {min_std}, max_std {max_std}; they must be above 0, and max_std the larger")
        self.bounds = (math.log(min_std), math.log(max_std))
        self.z = nn.Parameter(torch.zeros(num_steps, action_dim))
        self.of_features = None
        if feature_size is not None:
            last = nn.Linear(64, num_steps * action_dim)
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
            self.of_features = nn.Sequential(nn.LayerNorm(feature_size), nn.Linear(feature_size, 64), nn.Tanh(), last)

    def forward(self, features: torch.Tensor | None = None) -> torch.Tensor:
        """features (B, feature_size) or None -> stds, float32 (B, num_steps, action_dim), or (1, num_steps, action_dim)"""
        z = self.z.float()[None]
        if self.of_features is not None:
            dtype = self.of_features[1].weight.dtype
            z = z + self.of_features(features.to(dtype)).float().unflatten(
                -1, self.z.shape
            )  # (B, num_steps, action_dim)
        low, high = self.bounds
        return torch.exp(low + (high - low) * (1 + torch.tanh(z)) / 2)


def _is_whole(value) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and value >= 1


def _is_positive(value) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and 0 < value < math.inf


def _is_correlation(value) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and 0 <= value < 1


_NEEDED: dict[str, tuple[Callable, str]] = {
    "noisy_steps": (NOISY_STEPS.__contains__, f"one of {', '.join(map(repr, NOISY_STEPS))}"),
    "noise_level": (_is_positive, "a number above 0"),
    "std": (_is_positive, "a number above 0"),
    "noise_correlation": (_is_correlation, "a number, at least 0, below 1"),
    "learned_std": (lambda value: isinstance(value, LearnedStd), "an hf_vla.LearnedStd"),
    "temperature": (_is_positive, "a number above 0"),
    "num_inference_steps": (_is_whole, "a whole number, at least 1"),
    "executed_steps": (_is_whole, "a whole number, at least 1"),
}


@dataclass(frozen=True)
class Exploration:
    """How `sample_chunk` draws, and what `chunk_log_prob` therefore computes. None is the framework's default everywhere.

    Args:
        noisy_steps: PI, PI_v3, GR00T, Dual: which denoising steps are noisy; the others are Euler steps. "last" (the default)
            explores around what the policy would do, and works for policies that know one way only; "all" also explores
            among several ways; "one" draws a step for each observation.
        noise_level: PI, PI_v3, GR00T, Dual: `a` of Flow-SDE (piRL, 2510.25889), by default 0.5. In the last of 4 steps, the
            standard deviation is then 0.144.
        std: OFT, Adapter: the standard deviation in normalised units, by default exp(-2.5) = 0.082.
        noise_correlation: PI, PI_v3, GR00T, Dual, OFT, Adapter: how far the noise of neighbouring steps of the chunk correlates
            (an autoregressive process), by default 0. The noise of white draws mostly cancels out over a chunk; correlated
            noise moves the robot as far with a smaller standard deviation (colored noise, Eberhard et al., ICLR 2023).
        learned_std: instead of `noise_level` or `std`: a [`LearnedStd`], for example of
            `policy.new_learned_std()`. Around it, steps have no score correction (Flow-Noise of piRL).
        temperature: FAST, by default 1, and discrete diffusion, by default the config's `decode_temperature`.
        num_inference_steps: denoising steps, or rounds of decoding; by default the config's.
        executed_steps: of how many steps at the beginning of the chunk the log-probability is; by default all. FAST's tokens
            tell of the whole chunk and can't be cut. With denoising steps before the last one or several rounds of decoding,
            steps that are not executed influence the others, which the log-probability then leaves out.

    Raises:
        ValueError: a value is not possible, or two contradict each other.
    """

    noisy_steps: str | None = None
    noise_level: float | None = None
    std: float | None = None
    noise_correlation: float | None = None
    learned_std: LearnedStd | None = None
    temperature: float | None = None
    num_inference_steps: int | None = None
    executed_steps: int | None = None

    def __post_init__(self):
        for name, (fits, needed) in _NEEDED.items():
            value = getattr(self, name)
            if value is not None and not fits(value):
                raise ValueError(f"{name} is {value!r}; it must be {needed}, or None for the framework's default")
        if self.learned_std is not None and (fixed := [n for n in ("noise_level", "std") if getattr(self, n)]):
            raise ValueError(f"learned_std replaces {fixed[0]}; give one of them")

    @property
    def given(self) -> list[str]:
        """The names of the settings that are not left to the framework."""
        return [field.name for field in fields(self) if getattr(self, field.name) is not None]


__all__ = ["NOISY_STEPS", "Exploration", "LearnedStd"]
