"""Losses: means over what a batch is to learn, of the whole batch and of each sample."""

from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from .backbone import run_backbone


@dataclass
class ActionTargets:
    """What a batch is to learn, and how much each part of it counts.

    Args:
        actions: (B, action_horizon, action_dim), normalised.
        action_mask: boolean (B, action_horizon), false where a step is padding and does not count; None counts every step.
        sample_weight: (B,), how much each sample counts; None counts all alike.
        noise, timestep: what `forward` was given to fix the draw, for frameworks that draw; None where it is to be drawn.
    """

    actions: torch.Tensor
    action_mask: torch.Tensor | None = None
    sample_weight: torch.Tensor | None = None
    noise: torch.Tensor | None = None
    timestep: torch.Tensor | None = None

    def mean(self, error: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The mean of `error` (B, …, action_horizon, action_dim) over the steps that count: of the batch (), of each sample (B,)."""
        mask = self.action_mask
        if mask is not None:
            mask = mask.view(mask.shape[0], *[1] * (error.ndim - 3), mask.shape[1], 1)
        return weighted_mean(error, mask, self.sample_weight)


def weighted_mean(
    error: torch.Tensor, mask: torch.Tensor | None = None, sample_weight: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The mean of `error` over what counts.

    Args:
        error: (B, …).
        mask: boolean, broadcastable to it; true = counts. None counts everything.
        sample_weight: (B,), on all errors of a sample. A sample of which twice as much counts has twice the weight in the
            mean, with sample weights as without.

    Returns:
        The batch's mean, a scalar, and each sample's (B,), to which `sample_weight` makes no difference. A mean of nothing is 0.
    """
    batch = len(error)
    if mask is None:
        per_sample = error.reshape(batch, -1).mean(dim=1)
        if sample_weight is None:
            return error.mean(), per_sample
        weight = torch.ones_like(error)
    else:
        weight = mask.to(error.dtype).expand_as(error)
        number = weight.reshape(batch, -1).sum(dim=1)
        per_sample = (error * weight).reshape(batch, -1).sum(dim=1) / number.clamp(min=1)
    if sample_weight is not None:
        weight = weight * sample_weight.to(error.dtype).view(batch, *[1] * (error.ndim - 1))
    return (error * weight).sum() / weight.sum().clamp(min=torch.finfo(weight.dtype).tiny), per_sample


def labelled(labels: torch.Tensor) -> torch.Tensor:
    """Which of the labels (B, L) are learnt: boolean (B, L - 1). The first has no token before it that could predict it."""
    return labels[:, 1:] != -100


def language_model_loss(
    vlm: PreTrainedModel, labels: torch.Tensor, *, sample_weight: torch.Tensor | None = None, **inputs
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean cross-entropy of the next token where its label is not -100. Logits are computed there only.

    Args:
        vlm: an image-text-to-text model.
        labels: (B, L), not shifted: a position's label is its own token, as transformers has it.
        sample_weight: (B,), how much each sample's tokens count.
        inputs: the backbone's inputs: `input_ids` (B, L), `attention_mask` (B, L), `pixel_values`, …

    Returns:
        The batch's loss, a scalar, and each sample's (B,).
    """
    if labels.shape != inputs["input_ids"].shape:
        raise ValueError(
            f"labels have shape {tuple(labels.shape)}, input_ids {tuple(inputs['input_ids'].shape)}: they must be the same"
        )
    counted = labelled(labels)
    if not counted.any():
        raise ValueError("labels are -100 everywhere, so that no token counts; label at least one token of the batch")
    states = run_backbone(vlm, **inputs).last_hidden_state
    logits = vlm.get_output_embeddings()(states[:, :-1][counted])
    log_probs, targets = nn.functional.log_softmax(logits.float(), dim=-1), labels[:, 1:][counted]
    per_token = nn.functional.nll_loss(log_probs, targets, reduction="none")
    per_token = torch.zeros_like(counted, dtype=per_token.dtype).masked_scatter(counted, per_token)
    loss, per_sample = weighted_mean(per_token, counted, sample_weight)
    if sample_weight is None:
        loss = nn.functional.nll_loss(log_probs, targets)  # the same, bit for bit as transformers computes it
    return loss, per_sample


__all__ = ["ActionTargets", "labelled", "language_model_loss", "weighted_mean"]
