"""Exact statistics of a dataset's states and actions, cached in its folder."""

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..utils.files import atomic_write

logger = logging.getLogger(__name__)

_FORMAT = 2  # raised when the meaning of a cached file changes
_QUANTILES = (0.01, 0.99)
_BATCH = 1 << 16  # rows that are counted at a time


def compute_statistics(
    rows: Mapping[str, Callable[[], Iterable[np.ndarray]]], num_transitions: int, num_trajectories: int
) -> dict[str, Any]:
    """Compute exact statistics in raw units, in the layout of StarVLA's `dataset_statistics.json`, in bounded memory.

    Args:
        rows: by modality ("action", "state"), a function that yields all rows in parts (N, D), float32; it is called
            twice and must yield the same rows in any order.
        num_transitions: number of frames.
        num_trajectories: number of episodes.

    Returns:
        `{"action": {...}, "state": {...}, "num_transitions": ..., "num_trajectories": ...}`; per dimension `mean`, `std`
        (population), `min`, `max`, and the quantiles `q01` and `q99` with linear interpolation, as lists of floats.
    """
    statistics: dict[str, Any] = {modality: _per_dimension(parts) for modality, parts in rows.items()}
    return statistics | {"num_transitions": num_transitions, "num_trajectories": num_trajectories}


def _per_dimension(rows: Callable[[], Iterable[np.ndarray]]) -> dict[str, list[float]]:
    """Compute moments and extremes in one pass over the rows, and the quantiles in two, by counting.

    A float32's bits, suitably flipped, order like its value. The first pass counts the upper 16 of them, which tells in
    which bin each wanted order statistic lies; the second counts the lower 16 within those bins alone.
    """
    count, mean, squares, low, high, bins = 0, 0.0, 0.0, np.inf, -np.inf, None
    for part in _batches(rows()):
        values = part.astype(np.float64)
        # Chan, Golub and LeVeque (1979): the moments of two parts together.
        shift = values.mean(0) - mean
        total = count + len(values)
        squares = squares + ((values - values.mean(0)) ** 2).sum(0) + shift**2 * (count * len(values) / total)
        mean = mean + shift * (len(values) / total)
        count = total
        low, high = np.minimum(low, values.min(0)), np.maximum(high, values.max(0))
        upper = _count(_ordered_bits(part) >> 16)
        bins = upper if bins is None else bins + upper
    if not count:
        raise ValueError("there are no rows to make statistics of")

    positions = np.array(_QUANTILES) * (count - 1)
    ranks = sorted({int(rank) for rank in [*np.floor(positions), *np.ceil(positions)]})
    cumulative = bins.cumsum(axis=1)
    # Per dimension and rank, the bin that holds it, and how many values lie before that bin.
    bin_of = np.stack([np.searchsorted(line, ranks, side="right") for line in cumulative])
    before = np.take_along_axis(cumulative, bin_of, 1) - np.take_along_axis(bins, bin_of, 1)
    wanted = [sorted(set(line.tolist())) for line in bin_of]
    inside = {(d, b): np.zeros(1 << 16, np.int64) for d, line in enumerate(wanted) for b in line}
    for part in _batches(rows()):
        keys = _ordered_bits(part)
        for (d, b), counts in inside.items():
            counts += np.bincount(keys[keys[:, d] >> 16 == b, d] & 0xFFFF, minlength=1 << 16)
    order = np.empty((len(ranks), len(bins)))
    for d, line in enumerate(bin_of):
        for position, b in enumerate(line.tolist()):
            within = np.searchsorted(inside[d, b].cumsum(), ranks[position] - before[d, position], side="right")
            order[position, d] = _from_ordered_bits((b << 16) + int(within))
    quantiles = []
    for position in positions:
        below, above = (order[ranks.index(int(rank))] for rank in (np.floor(position), np.ceil(position)))
        quantiles.append(below + (above - below) * (position - np.floor(position)))
    values = {"mean": mean, "std": np.sqrt(squares / count), "min": low, "max": high}
    values |= {"q01": quantiles[0], "q99": quantiles[1]}
    return {name: value.tolist() for name, value in values.items()}


def _batches(parts: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Yield the same rows in fewer, larger parts."""
    waiting, rows = [], 0
    for part in parts:
        waiting.append(np.asarray(part, dtype=np.float32))
        rows += len(part)
        if rows >= _BATCH:
            yield np.concatenate(waiting)
            waiting, rows = [], 0
    if rows:
        yield np.concatenate(waiting)


def _ordered_bits(values: np.ndarray) -> np.ndarray:
    """Return float32 (N, D) as uint32 of the same order."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    return np.where(bits >> 31 == 1, ~bits, bits | np.uint32(1 << 31))


def _from_ordered_bits(key: int) -> float:
    bits = key ^ (1 << 31) if key >> 31 else ~key & 0xFFFFFFFF
    return float(np.uint32(bits).view(np.float32))


def _count(bins: np.ndarray) -> np.ndarray:
    """Count per column of (N, D) numbers below 2**16 how often each occurs: (D, 2**16)."""
    return np.stack([np.bincount(column, minlength=1 << 16) for column in bins.T])


def content_key(root: Path, files: list[str], selection: Any) -> str:
    """Return a key that changes with the size or modification time of any of `files`, and with `selection` (JSON)."""
    stats = [(root / file).stat() for file in files]
    contents = [(file, stat.st_size, stat.st_mtime_ns) for file, stat in zip(files, stats, strict=True)]
    return hashlib.sha256(json.dumps([_FORMAT, contents, selection]).encode()).hexdigest()[:20]


def read_cached(root: Path, key: str) -> dict[str, Any] | None:
    file = _cache_file(root, key)
    if not file.exists():
        return None
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if not content or not isinstance(content, dict):
            raise ValueError("it holds nothing")
    except (OSError, ValueError) as error:
        logger.warning("%s cannot be read (%s); what it held is computed again", file, error)
        return None
    return content


def write_cached(root: Path, key: str, statistics: dict[str, Any]) -> None:
    """Write the cache whole or not at all; a folder that cannot be written to costs time on the next run only."""
    try:
        with atomic_write(_cache_file(root, key)) as partial:
            partial.write_text(json.dumps(statistics), encoding="utf-8")
    except OSError as error:
        logger.info("statistics are not cached: %s", error)


def _cache_file(root: Path, key: str) -> Path:
    return root / ".hf_vla" / f"statistics-{key}.json"
