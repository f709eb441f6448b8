"""`DatasetMixture`: several datasets drawn from by weight, the same draw for the same (seed, epoch, index)."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from .statistics import compute_statistics


class DatasetMixture(Dataset):
    """A map-style dataset whose every item is a random frame of a random member.

    Item *i* of epoch *e* depends on `(seed, e, i)` alone: first the member is drawn with probability equal to its share
    of the weights, then one of its frames uniformly, both with replacement. Hence the sequence is the same under any
    number of workers and ranks, and goes on at any item after a restart.

    An epoch, `len(mixture)`, is as many draws as the members have frames together.

    Args:
        datasets: the members, `LeRobotDataset`s (or alike), with equal action horizon, action and state dimensions.
        weights: one positive number per member; only their ratios matter. Default: the members' numbers of frames, which
            makes every frame of the mixture equally likely.
        seed: non-negative.

    Raises:
        ValueError: no member, wrong weights, or members whose items can't stand in one batch.
    """

    def __init__(self, datasets: Sequence[Dataset], weights: Sequence[float] | None = None, seed: int = 0) -> None:
        self.datasets = list(datasets)
        if not self.datasets:
            raise ValueError("a mixture needs at least one dataset")
        if seed < 0:
            raise ValueError(f"seed must not be negative, got {seed}")
        for what in ("action_horizon", "action_dim", "state_dim"):
            values = [getattr(dataset, what) for dataset in self.datasets]
            if len(set(values)) > 1:
                given = ", ".join(
                    f"{value} of {dataset!r}" for value, dataset in zip(values, self.datasets, strict=True)
                )
                raise ValueError(f"the datasets of a mixture must agree in {what}: {given}")
        self._sizes = np.array([len(dataset) for dataset in self.datasets], dtype=np.int64)
        self.probabilities = _normalise(self._sizes if weights is None else weights, len(self.datasets))
        self.seed = seed
        # In shared memory, so that set_epoch also reaches worker processes that outlive the epoch.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Change the epoch, in this process and in all workers that it has started."""
        if epoch < 0:
            raise ValueError(f"epoch must not be negative, got {epoch}")
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return int(self._sizes.sum())

    def draw(self, index: int) -> tuple[int, int]:
        """Which member, and which of its items, is item `index` of this epoch."""
        if not 0 <= index < len(self):
            raise IndexError(f"item {index} of a mixture of {len(self)}")
        generator = np.random.default_rng([self.seed, int(self._epoch), index])
        member = int(generator.choice(len(self.datasets), p=self.probabilities))
        return member, int(generator.integers(self._sizes[member]))

    def __getitem__(self, index: int) -> dict[str, Any]:
        member, item = self.draw(index)
        return self.datasets[member][item]

    @cached_property
    def statistics(self) -> dict[str, dict[str, Any]]:
        """By key, the statistics of the members.

        Members that share a key share statistics: exact ones over all their frames, each counted once whatever the
        weights.
        """
        members: dict[str, list[Any]] = {}
        for dataset in self.datasets:
            members.setdefault(dataset.key, []).append(dataset)
        return {key: group[0].statistics if len(group) == 1 else _pool(group) for key, group in members.items()}

    def report(self) -> list[dict[str, Any]]:
        """What an epoch is expected to draw from each member.

        Returns:
            One dict per member: `dataset`, `key`, `frames`, `probability` per draw, `expected_draws` per epoch, and
            `expected_passes`, how often an epoch draws a frame of it on average.
        """
        return [
            {
                "dataset": str(getattr(dataset, "name", dataset)),
                "key": dataset.key,
                "frames": int(size),
                "probability": float(probability),
                "expected_draws": float(probability * len(self)),
                "expected_passes": float(probability * len(self) / size),
            }
            for dataset, size, probability in zip(self.datasets, self._sizes, self.probabilities, strict=True)
        ]


def _normalise(weights: Sequence[float], count: int) -> np.ndarray:
    weights = np.asarray(weights, dtype=np.float64)
    if weights.shape != (count,):
        raise ValueError(f"{count} datasets need {count} weights, got {weights.size}: {weights.tolist()}")
    if not (np.isfinite(weights) & (weights > 0)).all():
        raise ValueError(f"weights must be positive numbers, got {weights.tolist()}; leave out datasets of weight 0")
    return weights / weights.sum()


def _pool(datasets: list[Any]) -> dict[str, Any]:
    actions, states = zip(*(dataset.rows() for dataset in datasets), strict=True)
    state = None if states[0] is None else np.concatenate(states)
    return compute_statistics(np.concatenate(actions), state, sum(dataset.num_episodes for dataset in datasets))
