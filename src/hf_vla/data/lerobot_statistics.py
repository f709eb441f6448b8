"""The statistics that a LeRobot v3.0 dataset carries, for each episode and for the whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

__all__ = ["EpisodeStatistics", "ImageStatistics", "vector_statistics"]

EpisodeStatistics = dict[str, dict[str, Any]]

_QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}
# LeRobot estimates image statistics from a part of the frames too.
_MAX_IMAGES_AN_EPISODE = 16


def vector_statistics(values: np.ndarray) -> dict[str, list]:
    """Compute exact statistics over the first axis.

    Args:
        values: (T, D) numbers or booleans (counted as 0 and 1).

    Returns:
        `min`, `max`, `mean`, `std` (of the population) and the quantiles `q01`, `q10`, `q50`, `q90`, `q99` (linearly
        interpolated), each D numbers, and `count`, one number.
    """
    values = values.astype(np.float64)
    quantiles = np.quantile(values, list(_QUANTILES.values()), axis=0)
    return {
        "min": values.min(axis=0).tolist(),
        "max": values.max(axis=0).tolist(),
        "mean": values.mean(axis=0).tolist(),
        "std": values.std(axis=0).tolist(),
        "count": [len(values)],
        **{name: quantile.tolist() for name, quantile in zip(_QUANTILES, quantiles, strict=True)},
    }


class ImageStatistics:
    """Statistics for each colour channel in [0, 1], shaped (3, 1, 1), from evenly spaced frames of every episode.

    Eight-bit values are counted in a histogram, from which all statistics follow exactly.
    """

    def __init__(self):
        self._histogram = np.zeros((3, 256), dtype=np.int64)
        self._count = 0

    def add_episode(self, frames: Sequence[np.ndarray]) -> dict[str, list]:
        """Count an episode's frames, uint8 (H, W, 3), and return the episode's own statistics."""
        chosen = np.unique(np.linspace(0, len(frames) - 1, _MAX_IMAGES_AN_EPISODE).round().astype(int))
        pixels = np.stack([frames[index] for index in chosen]).reshape(-1, 3)
        histogram = np.stack([np.bincount(pixels[:, channel], minlength=256) for channel in range(3)])
        self._histogram += histogram
        self._count += len(chosen)
        return _histogram_statistics(histogram, len(chosen))

    def total(self) -> dict[str, list]:
        """Return statistics over all episodes."""
        return _histogram_statistics(self._histogram, self._count)


def _histogram_statistics(histogram: np.ndarray, count: int) -> dict[str, list]:
    levels = np.arange(256) / 255
    share = histogram / histogram.sum(axis=1, keepdims=True)
    mean = share @ levels
    std = np.sqrt(np.maximum(share @ levels**2 - mean**2, 0))
    occurring = histogram > 0
    cumulative = np.cumsum(share, axis=1)
    statistics = {
        "min": levels[occurring.argmax(axis=1)],
        "max": levels[255 - occurring[:, ::-1].argmax(axis=1)],
        "mean": mean,
        "std": std,
        **{name: levels[(cumulative >= q - 1e-12).argmax(axis=1)] for name, q in _QUANTILES.items()},
    }
    shaped = {name: value.reshape(3, 1, 1).tolist() for name, value in statistics.items()}
    return {**shaped, "count": [count]}
