"""Normalisation of states and actions with a dataset's statistics, both ways (StarVLA's semantics, section 7). float32.

| mode      | going in                                          | coming out                          |
|-----------|---------------------------------------------------|-------------------------------------|
| q99       | 2 (x - q01) / (q99 - q01) - 1, clipped to ±2.2    | (x + 1) / 2 (q99 - q01) + q01       |
| min_max   | 2 (x - min) / (max - min) - 1                     | (x + 1) / 2 (max - min) + min       |
| mean_std  | (x - mean) / std                                  | x std + mean                        |
| binary    | x > 0.5                                           | x > 0.5                             |
| none      | x                                                 | x                                   |

Where a range is empty: q99 passes x through going in, min_max and mean_std give 0; all return q01, min or mean coming out.
"""

from collections.abc import Mapping, Sequence

import numpy as np

MODES = ("q99", "min_max", "mean_std", "binary", "none")
_NEEDED = {"q99": ("q01", "q99"), "min_max": ("min", "max"), "mean_std": ("mean", "std"), "binary": (), "none": ()}
VECTORS = ("q01", "q99", "min", "max", "mean", "std")
CLIP = 2.2


def dimensions(statistics: Mapping[str, Sequence[float]], name: str) -> int:
    """How many dimensions the statistics of one modality are of.

    Raises:
        ValueError: they are no mapping of lists of numbers, empty, or of different lengths.
    """
    if not isinstance(statistics, Mapping):
        raise ValueError(f"the statistics of the {name} are {statistics!r:.80}; they map q01, q99, min, … to numbers")
    vectors = {key: np.shape(statistics[key]) for key in VECTORS if key in statistics}
    if wrong := [key for key, shape in vectors.items() if len(shape) != 1]:
        raise ValueError(f"{wrong[0]!r} of the {name} is {statistics[wrong[0]]!r:.80}; give one number a dimension")
    if not vectors:
        raise ValueError(f"the statistics of the {name} are empty; they need {', '.join(_NEEDED['q99'])} or such")
    if len(lengths := {shape[0] for shape in vectors.values()}) > 1:
        raise ValueError(f"the statistics of the {name} have different lengths: {sorted(lengths)}")
    return lengths.pop()


class Normalizer:
    """Normalises vectors of one modality ("action" or "state") of one dataset.

    Args:
        statistics: of that modality: "q01", "q99", "min", "max", "mean", "std", each one number a dimension.
        modes: one mode a dimension, or one for all.
        name: used in errors, for example "action of 'oxe_bridge'".

    Raises:
        ValueError: an unknown mode, or statistics that a mode needs are missing, of another length or not finite.
    """

    def __init__(self, statistics: dict[str, Sequence[float]], modes: str | Sequence[str], name: str = "values"):
        self.name = name
        self.dim = dimensions(statistics, name)
        self.modes = [modes] * self.dim if isinstance(modes, str) else list(modes)
        if len(self.modes) != self.dim:
            raise ValueError(f"{len(self.modes)} normalisation modes for the {self.dim} dimensions of the {name}")
        low, high = np.zeros(self.dim, np.float32), np.ones(self.dim, np.float32)
        for d, mode in enumerate(self.modes):
            if mode not in MODES:
                raise ValueError(f"unknown normalisation mode {mode!r} for the {name}; known are {', '.join(MODES)}")
            if missing := [key for key in _NEEDED[mode] if key not in statistics]:
                raise ValueError(f"mode {mode!r} of the {name} needs the statistics {', '.join(missing)}")
            if _NEEDED[mode]:
                low[d], high[d] = (statistics[key][d] for key in _NEEDED[mode])
        if not (np.isfinite(low).all() and np.isfinite(high).all()):
            raise ValueError(f"the statistics of the {name} hold NaN or infinite numbers")
        self._is = {mode: np.array([m == mode for m in self.modes]) for mode in MODES}
        # For mean_std, low is the mean and high the standard deviation.
        self._low = low
        self._span = np.where(self._is["mean_std"], high, high - low)
        self._empty = self._span == 0

    def _checked(self, x) -> np.ndarray:
        x = np.asarray(x, dtype=np.float32)
        if x.ndim == 0 or x.shape[-1] != self.dim:
            raise ValueError(f"got {self.name} of shape {x.shape}; the last dimension must be {self.dim}")
        return x

    def normalize(self, x) -> np.ndarray:
        """Robot units (..., D) -> normalised (..., D)."""
        x = self._checked(x)
        shifted = (x - self._low) / np.where(self._empty, 1, self._span)
        scaled = np.where(self._is["mean_std"], shifted, 2 * shifted - 1)
        scaled = np.where(self._empty, np.where(self._is["q99"], x, 0), scaled)
        scaled = np.where(self._is["q99"], np.clip(scaled, -CLIP, CLIP), scaled)
        return self._finish(x, scaled)

    def unnormalize(self, x) -> np.ndarray:
        """Normalised (..., D) -> robot units (..., D)."""
        x = self._checked(x)
        unit = np.where(self._is["mean_std"], x, (x + 1) / 2)
        return self._finish(x, unit * self._span + self._low)

    def _finish(self, x, scaled) -> np.ndarray:
        scaled = np.where(self._is["none"], x, scaled)
        return np.where(self._is["binary"], x > 0.5, scaled).astype(np.float32)
