"""Seeds of a policy's calls within an episode, the same whether the policy is here or on a server."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

import numpy as np


def episode_seeds(seed: int) -> Iterator[int]:
    """Return the seeds of an episode's calls, without end: the episode's own first, then others that follow from it."""
    seed = int(seed)
    return map(lambda number: draw_seed(seed, number) if number else seed, count())


def draw_seed(seed: int, number: int) -> int:
    """Return the seed of draw `number`, from 0, of those that follow from a seed."""
    drawn = np.random.SeedSequence([seed % 2**64, number]).generate_state(1, np.uint64)
    return int(drawn[0] >> np.uint64(1))  # 63 bits, which any generator takes


__all__ = ["draw_seed", "episode_seeds"]
