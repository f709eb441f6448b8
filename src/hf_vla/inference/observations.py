"""Check and batch the observations that `Policy` takes: {"image": [...], "lang": "...", "state": ...}."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch


def checked(observations) -> list[Mapping]:
    """Return the observations as a list.

    Raises:
        ValueError: there are none, or one of them lacks images or an instruction.
    """
    batch = list(observations) if isinstance(observations, Sequence) and not isinstance(observations, str) else []
    if not batch or not all(isinstance(o, Mapping) for o in batch):
        raise ValueError(
            f"got {observations!r:.80} for observations; give one {{'image': [...], 'lang': '...', 'state': ...}}, or a list "
            "of at least one"
        )
    for index, o in enumerate(batch):
        if absent := [name for name in ("image", "lang") if o.get(name) is None]:
            raise ValueError(
                f"observation {index} lacks {' and '.join(map(repr, absent))}; it has {', '.join(map(repr, o))}"
            )
        if not isinstance(o["lang"], str):
            raise ValueError(f"'lang' of observation {index} is {o['lang']!r:.80}; give the instruction, a string")
    return batch


def views(image) -> list:
    """Return one image, a list of them or an array (V, height, width, 3) as a list; the processor checks the images."""
    several = isinstance(image, list | tuple) or (isinstance(image, np.ndarray) and image.ndim == 4)
    return list(image) if several else [image]


def states(batch: list[Mapping]) -> np.ndarray | None:
    """Return the observations' states, each (S,) or (1, S), as float32 (B, 1, S), or None if they have none.

    Raises:
        ValueError: only some observations have a state, or the states have a wrong type, shape or different dimensions.
    """
    with_state = [o.get("state") is not None for o in batch]
    if not any(with_state):
        return None
    if not all(with_state):
        raise ValueError("some observations of the batch have a state and some have none")
    states = [o["state"].detach().float().cpu() if isinstance(o["state"], torch.Tensor) else o["state"] for o in batch]
    try:
        states = [np.asarray(state, dtype=np.float32) for state in states]
    except (TypeError, ValueError) as error:
        raise ValueError(f"a state is no array of numbers: {error}") from None
    for index, state in enumerate(states):
        if state.ndim not in (1, 2) or (state.ndim == 2 and len(state) != 1):
            raise ValueError(
                f"the state of observation {index} has shape {state.shape}; give (state_dim,) or (1, state_dim)"
            )
    if len(sizes := {state.size for state in states}) > 1:
        raise ValueError(f"the states of the batch have different dimensions: {sorted(sizes)}")
    return np.stack([state.reshape(1, -1) for state in states])


__all__ = ["checked", "states", "views"]
