"""Statistics of a dataset's states and actions, exact, and cached beside the dataset."""

import hashlib
import json
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np

logger = logging.getLogger(__name__)

_FORMAT = 1  # raised when the meaning of a cached file changes


def compute_statistics(action: np.ndarray, state: np.ndarray | None, num_trajectories: int) -> dict[str, Any]:
    """Statistics in raw units over all rows, in the layout of StarVLA's `dataset_statistics.json`.

    Args:
        action: (N, D).
        state: (N, S), or None.
        num_trajectories: number of episodes that the rows come from.

    Returns:
        `{"action": {...}, "state": {...}, "num_transitions": N, "num_trajectories": ...}`; per dimension `mean`, `std`
        (population), `min`, `max`, and the quantiles `q01` and `q99` with linear interpolation, as lists of floats.
    """
    statistics: dict[str, Any] = {"action": _per_dimension(action)}
    if state is not None:
        statistics["state"] = _per_dimension(state)
    return statistics | {"num_transitions": len(action), "num_trajectories": num_trajectories}


def _per_dimension(rows: np.ndarray) -> dict[str, list[float]]:
    rows = rows.astype(np.float64)
    q01, q99 = np.quantile(rows, [0.01, 0.99], axis=0, method="linear")
    values = {
        "mean": rows.mean(0),
        "std": rows.std(0),
        "min": rows.min(0),
        "max": rows.max(0),
        "q01": q01,
        "q99": q99,
    }
    return {name: value.tolist() for name, value in values.items()}


def content_key(root: Path, files: list[str], selection: Any) -> str:
    """A key that changes with the size or modification time of any of `files`, and with `selection` (JSON)."""
    stats = [(root / file).stat() for file in files]
    contents = [(file, stat.st_size, stat.st_mtime_ns) for file, stat in zip(files, stats, strict=True)]
    return hashlib.sha256(json.dumps([_FORMAT, contents, selection]).encode()).hexdigest()[:20]


def read_cached(root: Path, key: str) -> dict[str, Any] | None:
    file = _cache_file(root, key)
    if not file.exists():
        return None
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        logger.warning("%s cannot be read (%s); the statistics are computed again", file, error)
        return None


def write_cached(root: Path, key: str, statistics: dict[str, Any]) -> None:
    """Write the cache whole or not at all; a folder that cannot be written to costs time on the next run only."""
    file = _cache_file(root, key)
    temporary = file.with_suffix(f".{os.getpid()}.tmp")
    try:
        file.parent.mkdir(exist_ok=True)
        temporary.write_text(json.dumps(statistics), encoding="utf-8")
        temporary.replace(file)
    except OSError as error:
        if temporary.exists():
            temporary.unlink()
        logger.info("statistics are not cached: %s", error)


def _cache_file(root: Path, key: str) -> Path:
    return root / ".hf_vla" / f"statistics-{key}.json"
