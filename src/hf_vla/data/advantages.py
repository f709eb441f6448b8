"""Returns and advantages of a dataset's frames, by RECAP's formulas (pi*0.6, 2511.14759).

Time is divided by the longest episode of its task, so that returns lie in [-1, 0]: a step costs 1 / longest until the task is solved,
and a failure costs so much more that its returns are -1, or what `failure_cost` makes of it.
"""

from collections.abc import Iterable

import numpy as np

from .outcomes import Outcome


def returns(outcome: Outcome, longest: int, failure_cost: float | None = None) -> np.ndarray:
    """Return the normalised return from each frame, float64 (L,) in [-1, 0]: minus the steps that are left, over `longest`.

    Args:
        outcome: of the episode.
        longest: frames of the task's longest episode.
        failure_cost: what a failure costs at its end, in steps; by default `longest`, which makes all its returns -1.
    """
    left = outcome.steps_left.astype(np.float64)
    if not outcome.success:
        left = left + (longest if failure_cost is None else failure_cost)
    return np.maximum(-left / longest, -1.0) + 0.0


def advantages(
    outcome: Outcome, values: np.ndarray, longest: int, lookahead: int, failure_cost: float | None = None
) -> np.ndarray:
    """Return A_t = sum of N rewards from t + V(t + N) - V(t), float64 (L,); to the end of the episode if that comes sooner.

    Args:
        outcome: of the episode.
        values: V of its frames (L,).
        longest, failure_cost: as for `returns`.
        lookahead: N.
    """
    values = np.asarray(values, np.float64)
    result = returns(outcome, longest, failure_cost) - values
    if lookahead < len(values):
        left = outcome.steps_left
        rewards = -(left[:-lookahead] - left[lookahead:]) / longest
        result[:-lookahead] = rewards + values[lookahead:] - values[:-lookahead]
    return result


def threshold(values: Iterable[float], share: float) -> float:
    """Return the number above which `share` of the values lie."""
    return float(np.quantile(np.fromiter(values, np.float64), 1 - share))


__all__ = ["advantages", "returns", "threshold"]
