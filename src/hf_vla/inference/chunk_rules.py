"""How action chunks become actions: one `ChunkRule`, and the means over chunks that overlap.

It needs only NumPy, and Python 3.8: simulators with an environment of their own use it too.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import numpy as np

from ..utils.suggestions import nearest_first

MODES = ("open_loop", "temporal_ensemble", "adaptive_ensemble", "real_time_chunking")
# What the settings of single modes are if they are not given.
_SETTINGS = {
    "temporal_ensemble": {"decay": 0.01},
    "adaptive_ensemble": {"length": None, "alpha": 0.1},
}
_DEFAULT_EXECUTE = 5


@dataclass(frozen=True)
class ChunkRule:
    """When a policy is asked for its next chunk, and which action is executed meanwhile.

    Time is counted in control steps. The chunk that is asked for at step t predicts the actions of the steps t, t + 1, …; it is
    there at step t + d, d the inference delay, and until then the chunks before it are executed. Only one chunk is computed at a time.

    * `open_loop`: the newest chunk is executed. Without a delay these are its first `execute` actions; with one, its actions from d
      on ("naive asynchronous": nothing makes the new chunk continue the old one).
    * `temporal_ensemble`: the mean of what all chunks predict for now, with weights exp(-decay · i), i = 0 the oldest (Zhao et al.,
      "Learning Fine-Grained Bimanual Manipulation with Low-Cost Hardware" (ACT), 2023, section IV and Algorithm 2).
    * `adaptive_ensemble`: the mean of what the last `length` chunks predict for now, weighted by how much they agree with the newest
      (Li et al., "CogACT", 2024, section 3.4), as StarVLA evaluates SimplerEnv; see `adaptive_mean`.
    * `real_time_chunking`: as `open_loop`, but each chunk is drawn so that it continues the one before (Black et al., "Real-Time
      Execution of Action Chunking Flow Policies", 2025). A policy that can't is executed as with `open_loop`, which is logged.

    At the start of an episode and after a change of the instruction there is nothing to execute: the robot waits for the chunk.

    Args:
        mode: one of `MODES`.
        execute: steps from one request to the next, or the delay, if that is longer. Default: 5, or what the chunk allows, for
            `open_loop` and `real_time_chunking`; 1 for ensembles.
        inference_delay: d. None: 0 in a simulator; on a robot, whenever the chunk is there.
        decay: of `temporal_ensemble`; default: 0.01, ACT's. Negative: newer predictions count more.
        length: of `adaptive_ensemble`; default: all chunks that reach now.
        alpha: of `adaptive_ensemble`; default: 0.1.

    Raises:
        ValueError: an unknown mode, a number out of range, or a setting of another mode.
    """

    mode: str = "open_loop"
    execute: int | None = None
    inference_delay: int | None = None
    decay: float | None = None
    length: int | None = None
    alpha: float | None = None

    def __post_init__(self):
        if self.mode not in MODES:
            raise ValueError(
                f"unknown chunk mode {self.mode!r}; possible: {', '.join(nearest_first(str(self.mode), MODES))}"
            )
        for name, least in (("execute", 1), ("inference_delay", 0), ("length", 1)):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, Integral) or isinstance(value, bool) or value < least):
                raise ValueError(f"{name} is {value!r}; give a whole number from {least}")
        own = _SETTINGS.get(self.mode, {})
        for mode, settings in _SETTINGS.items():
            for name, default in settings.items():
                if name not in own and getattr(self, name) is not None:
                    raise ValueError(f"{name} belongs to the chunk mode {mode}, and the mode is {self.mode}")
                if name in own and getattr(self, name) is None:
                    object.__setattr__(self, name, default)
        for name in ("decay", "alpha"):
            value = getattr(self, name)
            if value is not None and (
                not isinstance(value, Real) or isinstance(value, bool) or not math.isfinite(value)
            ):
                raise ValueError(f"{name} is {value!r}; give a number")

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> ChunkRule:
        """Return the rule of a benchmark's record, {FIELD: VALUE}.

        Raises:
            ValueError: an unknown field, or as the class.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        if not isinstance(given, Mapping):
            raise ValueError(f"a chunk rule is {given!r}; give a mapping")
        for name in given:
            if name not in known:
                raise ValueError(
                    f"unknown key {name!r} in a chunk rule; possible: {', '.join(nearest_first(str(name), known))}"
                )
        return cls(**given)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields that are set, as JSON."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value is not None}

    def period(self, horizon: int, delay: int) -> int:
        """Return the steps from one request to the next, for chunks of `horizon` actions; more if a chunk is still under way.

        Raises:
            ValueError: a chunk is too short to last until the next one is there.
        """
        execute = self.execute
        if execute is None:
            execute = 1 if self.mode in _SETTINGS else max(1, min(_DEFAULT_EXECUTE, horizon - delay))
        period = max(execute, delay)  # one chunk is computed at a time
        if period + delay <= horizon:
            return execute
        if not delay:
            raise ValueError(
                f"{period} actions per chunk are to be executed, but the policy returns {horizon}; set execute_steps to "
                f"{horizon} at most"
            )
        raise ValueError(
            f"a chunk is asked for every {period} steps and arrives {delay} steps later, so it must have {period + delay} "
            f"actions, but the policy returns {horizon}; set inference_delay to {horizon // 2} at most, and execute_steps to "
            f"{horizon} less the delay"
        )


def temporal_mean(predictions: Sequence[np.ndarray], decay: float = 0.01) -> np.ndarray:
    """Return the mean of what several chunks predict for one moment, oldest first, with weights exp(-decay · i).

    Zhao et al. 2023 (ACT), section IV: w_i = exp(-m · i), and w_0 is the weight of the oldest prediction.

    Args:
        predictions: each (D,).

    Returns:
        float64 (D,).
    """
    weights = np.exp(-decay * np.arange(len(predictions)))
    return weights @ np.stack(predictions).astype(np.float64) / weights.sum()


def adaptive_mean(predictions: Sequence[np.ndarray], alpha: float = 0.1) -> np.ndarray:
    """Return the mean of what several chunks predict for one moment, oldest first, weighted by agreement with the newest.

    Of the predictions p_1 … p_n, p_n the newest, p_j has a weight proportional to exp(alpha · cos(p_j, p_n)); the cosine is over
    all values of the action, the gripper among them, with 1e-7 added to its denominator. Li et al. 2024 (CogACT), section 3.4, as in
    StarVLA's evaluation of SimplerEnv.

    Args:
        predictions: each (D,).

    Returns:
        float64 (D,).
    """
    values = np.stack(predictions).astype(np.float64)
    newest = values[-1]
    norms = np.linalg.norm(values, axis=1) * np.linalg.norm(newest)
    weights = np.exp(alpha * (values @ newest) / (norms + 1e-7))
    return weights @ values / weights.sum()


__all__ = ["MODES", "ChunkRule", "adaptive_mean", "temporal_mean"]
