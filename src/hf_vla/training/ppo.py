"""Proximal policy optimisation on action chunks: advantages and losses, as functions of tensors.

Time counts chunks. Sources: GAE (Schulman et al. 2015, arXiv 1506.02438), PPO (2017, 1707.06347), the dual clip (Ye et al. 2019,
1912.09729), RLOO (Ahmadian et al. 2024, 2402.14740), GRPO (Shao et al. 2024, 2402.03300), and for chunks piRL (2510.25889).
"""

from collections.abc import Sequence

import numpy as np
import torch

#: Log-ratios are clamped to this before they are exponentiated.
_MOST_LOG_RATIO = 20.0


def generalized_advantages(
    rewards: Sequence[float], values: Sequence[float], gamma: float, gae_lambda: float
) -> tuple[np.ndarray, np.ndarray]:
    """Compute the advantages of an episode's chunks, and the returns that the critic learns: float32 (T,) each.

    The episode's end is terminal, with value 0, at the time limit too: that is a failure, as in evaluation.

    Args:
        rewards, values: of the T chunks.
    """
    advantages, following = np.zeros(len(rewards), np.float32), 0.0
    values = np.asarray(values, np.float32)
    for t in reversed(range(len(rewards))):
        value_after = values[t + 1] if t + 1 < len(rewards) else 0.0
        delta = rewards[t] + gamma * value_after - values[t]
        advantages[t] = following = delta + gamma * gae_lambda * following
    return advantages, advantages + values


def group_advantages(returns: Sequence[float], kind: str) -> list[float]:
    """Compute the advantages of a group's episodes, which hold for all of their chunks.

    Args:
        returns: of the K episodes, at least two.
        kind: "rloo": R minus the mean of the other K - 1; "grpo": (R - mean) / (std + 1e-6).
    """
    returns = np.asarray(returns, np.float64)
    if len(returns) < 2:
        raise ValueError(f"a group of {len(returns)} episode has nothing to compare it with; group_size starts at 2")
    if kind == "rloo":
        others = (returns.sum() - returns) / (len(returns) - 1)
        return (returns - others).tolist()
    return ((returns - returns.mean()) / (returns.std() + 1e-6)).tolist()


def policy_losses(
    log_prob: torch.Tensor,
    old_log_prob: torch.Tensor,
    advantages: torch.Tensor,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Compute PPO's clipped loss of each chunk, with gradients for `log_prob`, and figures to log, all float32 (B,).

    With the ratio r = exp(log_prob - old_log_prob) it is max(-r A, -clip(r, 1 - clip_low, 1 + clip_high) A), and for negative
    advantages at most dual_clip |A|.
    """
    log_ratio = (log_prob.float() - old_log_prob.float()).clamp(-_MOST_LOG_RATIO, _MOST_LOG_RATIO)
    ratio = log_ratio.exp()
    plain, clipped = -ratio * advantages, -ratio.clamp(1 - clip_low, 1 + clip_high) * advantages
    losses = torch.maximum(plain, clipped)
    is_clipped, is_dual_clipped = clipped > plain, torch.zeros_like(plain, dtype=torch.bool)
    if dual_clip is not None:
        most = dual_clip * advantages.abs()
        is_dual_clipped = (advantages < 0) & (losses > most)
        losses = torch.where(is_dual_clipped, most, losses)
    with torch.no_grad():
        figures = {
            "approx_kl": ratio - 1 - log_ratio,  # J. Schulman's estimator k3
            "clip_fraction": is_clipped.float(),
            "dual_clip_fraction": is_dual_clipped.float(),
            "ratio": ratio,
            "ratio_abs": (ratio - 1).abs(),
            "policy_loss": losses,
        }
    return losses, {name: figure.detach().float() for name, figure in figures.items()}


def value_losses(
    values: torch.Tensor, old_values: torch.Tensor, returns: torch.Tensor, clip: float | None, delta: float = 10.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the critic's Huber loss of each chunk, the larger one of clipped and unclipped values, and which are clipped: (B,)."""

    def huber(x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.huber_loss(x, returns, reduction="none", delta=delta)

    plain = huber(values)
    if clip is None:
        return plain, torch.zeros_like(plain)
    clipped = huber(old_values + (values - old_values).clamp(-clip, clip))
    return torch.maximum(plain, clipped), (clipped > plain).float()


def explained_variance(values: np.ndarray, returns: np.ndarray) -> float:
    """Compute 1 - var(returns - values) / var(returns); 0 if the returns do not vary."""
    spread = float(np.var(returns))
    return 0.0 if spread < 1e-12 else 1.0 - float(np.var(np.asarray(returns) - np.asarray(values))) / spread


__all__ = ["explained_variance", "generalized_advantages", "group_advantages", "policy_losses", "value_losses"]
