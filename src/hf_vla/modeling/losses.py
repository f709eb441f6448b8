"""Losses of several frameworks."""

import torch
from torch import nn
from transformers import PreTrainedModel

from .backbone import run_backbone


def masked_mean(error: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """The mean of `error` (B, …, H, D) over the steps where the boolean `mask` (B, H) is true; over all where it is None."""
    if mask is None:
        return error.mean()
    mask = mask.view(mask.shape[0], *[1] * (error.ndim - 3), mask.shape[1], 1)
    weight = mask.to(error.dtype).expand_as(error)
    return (error * weight).sum() / weight.sum().clamp(min=1)


def labelled(labels: torch.Tensor) -> torch.Tensor:
    """Of labels (B, L), which are learnt: boolean (B, L - 1). The first has no token before it that could predict it."""
    return labels[:, 1:] != -100


def language_model_loss(vlm: PreTrainedModel, labels: torch.Tensor, **inputs) -> torch.Tensor:
    """Mean cross-entropy of the next token where its label is not -100. Logits are computed there only.

    Args:
        vlm: an image-text-to-text model.
        labels: (B, L), not shifted: a position's label is its own token, as transformers has it.
        inputs: the backbone's inputs: `input_ids` (B, L), `attention_mask` (B, L), `pixel_values`, …
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
    return nn.functional.cross_entropy(logits.float(), labels[:, 1:][counted])
