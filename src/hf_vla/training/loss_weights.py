"""How much each micro-batch of an optimizer step counts, so that every target of the step counts the same.

A loss is a mean over a batch's targets: action steps that are no padding, labelled tokens. Batches differ in how many they
have. Were their means averaged as they are, a step's gradient would depend on how its samples were dealt out to micro-batches
and processes. With n_k targets in batch k of K, weighting its mean by n_k / (sum(n) / K) gives the mean over all targets.
"""

from collections.abc import Mapping, Sequence

import torch

LOSSES = ("action_loss", "vlm_loss")


def counts(model, batch: Mapping, device: torch.device) -> torch.Tensor:
    """Targets of each of `LOSSES` in a batch, as `model.loss_counts` has it: float32 (2,)."""
    found = model.loss_counts(batch)
    return torch.stack([torch.as_tensor(found.get(name, 0), dtype=torch.float32, device=device) for name in LOSSES])


def mean_counts(model, batches: Sequence[Mapping], accelerator) -> torch.Tensor | None:
    """Targets of each loss in an average micro-batch of this step, over all processes; None where the step has only one."""
    if len(batches) * accelerator.num_processes <= 1:
        return None
    total = torch.stack([counts(model, batch, accelerator.device) for batch in batches]).sum(dim=0)
    return accelerator.reduce(total, reduction="mean") / len(batches)


def weights(model, batch: Mapping, mean: torch.Tensor | None) -> dict[str, float | torch.Tensor]:
    """The factor on each loss of a batch, given `mean_counts`."""
    if mean is None:
        return dict.fromkeys(LOSSES, 1.0)
    factors = counts(model, batch, mean.device) / mean.clamp(min=torch.finfo(mean.dtype).tiny)
    return dict(zip(LOSSES, factors.unbind(), strict=True))


__all__ = ["LOSSES", "mean_counts", "weights"]
