"""Seeds of a policy's calls within an episode, the same whether the policy is here or on a server."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

import numpy as np


def episode_seeds(seed: int) -> Iterator[int]:
    """Return the seeds of an episode's calls, without end: the episode's own first, then others that follow from it."""
    return map(lambda number: _seed_of_call(int(seed), number), count())


def _seed_of_call(seed: int, number: int) -> int:
    if number == 0:
        return seed
    drawn = np.random.SeedSequence([seed % 2**64, number]).generate_state(1, np.uint64)
    return int(drawn[0] >> np.uint64(1))  # 63 bits, which any generator takes


__all__ = ["episode_seeds"]
