"""Open-loop action error: the batches of an evaluation, the error sums of each sample, and the metrics made of them.

A policy predicts the chunk of every evaluated frame; its distance from the recorded actions is averaged over the steps that
are not padding. Errors of single dimensions are in robot units (metres, radians, open or closed), which can't be averaged;
the mean over dimensions is in normalised units.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from ..robots.robot_types import known_robot

#: entries that `EvaluationCollator` adds to a batch
EXTRAS = ("evaluation_index", "evaluation_key", "evaluation_actions")


class IndexedDataset(Dataset):
    """A dataset whose items carry their index, so that the noise drawn for an item does not depend on its batch."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.dataset[index] | {"evaluation_index": index}


class EvaluationCollator:
    """Makes a training batch with what its evaluation needs.

    Adds `evaluation_index` (B,), the items' indices; `evaluation_key` (B,), the positions of their statistics keys among the
    processor's sorted keys; and `evaluation_actions` (B, T, D), the recorded actions in robot units, before normalisation.
    """

    def __init__(self, collator: Any, processor: Any) -> None:
        self.collator, self.processor = collator, processor

    def __call__(self, items: list[dict[str, Any]]) -> Any:
        batch = self.collator([{k: v for k, v in item.items() if k != "evaluation_index"} for item in items])
        keys = sorted(self.processor.statistics)
        batch["evaluation_index"] = torch.tensor([item["evaluation_index"] for item in items])
        batch["evaluation_key"] = torch.tensor([keys.index(item["dataset"]) for item in items])
        actions = np.stack([np.asarray(item["action"], dtype=np.float32) for item in items])
        batch["evaluation_actions"] = torch.from_numpy(actions)
        return batch


def noise_for(indices: torch.Tensor, horizon: int, dim: int, seed: int) -> torch.Tensor:
    """Draw Gaussian noise (B, horizon, dim) that depends on nothing but the seed and each sample's index."""
    draws = [
        torch.randn(horizon, dim, generator=torch.Generator().manual_seed(seed + index)) for index in indices.tolist()
    ]
    return torch.stack(draws)


def sample_errors(
    predicted: torch.Tensor, batch: dict[str, torch.Tensor], extras: dict[str, torch.Tensor], processor: Any
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Sum the absolute errors of each sample over its steps that are not padding.

    Args:
        predicted: (B, H, D), normalised.
        batch: the training batch, with `actions` (B, T, D) and optionally `action_mask` (B, T), of which the last H steps count.
        extras: the `EXTRAS` of that batch.

    Returns:
        The sums in normalised units (B, D), those in robot units (B, D), and the numbers of steps (B,), on the batch's device.
    """
    horizon, device = predicted.shape[1], predicted.device
    mask = batch.get("action_mask")
    if mask is None:
        mask = torch.ones(batch["actions"].shape[:2], dtype=torch.bool, device=device)
    mask = mask[:, -horizon:, None]
    normalized = (predicted.float() - batch["actions"][:, -horizon:].float()).abs()
    names = sorted(processor.statistics)
    keys = [names[i] for i in extras["evaluation_key"].tolist()]
    actions = processor.unnormalize_actions(predicted.float().cpu(), keys)
    robot = torch.from_numpy(actions).to(device) - extras["evaluation_actions"][:, -horizon:].to(device)
    return (normalized * mask).sum(1), (robot.abs() * mask).sum(1), mask.sum((1, 2)).float()


def action_errors(
    normalized: np.ndarray, robot: np.ndarray, steps: np.ndarray, keys: np.ndarray, processor: Any
) -> dict[str, float]:
    """Compute the metrics of all samples together.

    Args:
        normalized, robot, steps, keys: (N, D), (N, D), (N,) and (N,) from `sample_errors` and `EvaluationCollator`.

    Returns:
        `action_error`: mean absolute error over all steps and dimensions, normalised units; with several statistics keys,
        `action_error/KEY`, the same for each; `action_error/KEY/NAME`: of each dimension, in robot units (for a binary one,
        the share of steps that are wrong).
    """
    steps = steps.astype(np.float64)

    def summary(rows) -> float:
        return float(normalized[rows].sum(dtype=np.float64) / (steps[rows].sum() * normalized.shape[1]))

    names, present = sorted(processor.statistics), np.unique(keys).tolist()
    errors = {"action_error": summary(slice(None))}
    for key in present:
        rows = keys == key
        if len(present) > 1:
            errors[f"action_error/{names[key]}"] = summary(rows)
        per_dimension = robot[rows].sum(0, dtype=np.float64) / steps[rows].sum()
        dimensions = action_names(processor, names[key], len(per_dimension))
        errors |= {f"action_error/{names[key]}/{n}": float(e) for n, e in zip(dimensions, per_dimension, strict=True)}
    return errors


def metric_names(keys: Sequence[str], processor: Any) -> list[str]:
    """Return the names of the metrics that `action_errors` computes for data of these statistics keys."""
    names = ["action_error"] + [f"action_error/{key}" for key in keys if len(keys) > 1]
    for key in keys:
        dim = len(processor.statistics[key]["action"]["mean"])
        names += [f"action_error/{key}/{name}" for name in action_names(processor, key, dim)]
    return names


def action_names(processor: Any, key: str, dim: int) -> list[str]:
    """Return the names of the action dimensions: the dataset's, else the robot type's, else their numbers."""
    robot = known_robot(processor.robot_types.get(key, key))
    for names in (processor.action_names.get(key), robot and robot.action.names):
        if names and len(names) == dim and len(set(names)) == dim:
            return list(names)
    return [str(i) for i in range(dim)]


__all__ = [
    "EXTRAS",
    "EvaluationCollator",
    "IndexedDataset",
    "action_errors",
    "metric_names",
    "noise_for",
    "sample_errors",
]
