"""Which frames an item holds beside its own, and what its actions are relative to.

Frames are given as offsets from the item's own, `delta_indices`. Past either end of the episode its first or last frame
stands in, and the mask is false there. Actions that are differences (`delta: true` in the column mapping) are zero there
instead: the robot stands still. In the modes `delta` and `relative` this follows from repeating the absolute action.

What the modes make of actions: [`hf_vla.robots.action_modes`].
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..robots.action_modes import ACTION_MODES, ActionMode
from .checks import integers, is_integer

_OFFSET_KEYS = ("action", "state", "image")
# Rows of chunks that are made at a time for statistics.
_ROWS_AT_ONCE = 4096


@dataclass(frozen=True)
class Window:
    """The offsets of an item's frames from its own, and the action mode.

    Args:
        action: T offsets, ascending.
        state, image: offsets; those that do not ask for history are (0,).
        mode: one of `ACTION_MODES`.
        absolute_dims: action dimensions that the mode leaves alone.
        delta_dims: stored action dimensions that are differences.
    """

    action: tuple[int, ...]
    state: tuple[int, ...] = (0,)
    image: tuple[int, ...] = (0,)
    mode: str = "stored"
    absolute_dims: tuple[int, ...] = ()
    delta_dims: tuple[int, ...] = ()
    offsets: np.ndarray = field(init=False, repr=False, compare=False)
    action_mode: ActionMode = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "offsets", np.array(self.action))
        object.__setattr__(self, "action_mode", ActionMode(self.mode, self.absolute_dims))

    def actions(self, action: np.ndarray, state: np.ndarray | None, frame: int) -> tuple[np.ndarray, np.ndarray]:
        """The chunk at one frame of an episode.

        Args:
            action: (L, D), the episode's.
            state: (L, S), or None.

        Returns:
            (T, D) float32 and the mask (T,), false past the episode's end.
        """
        wanted = frame + self.offsets
        kept = np.minimum(np.maximum(wanted, 0), len(action) - 1)  # np.clip takes five times as long
        inside = kept == wanted
        chunk = action[kept]
        if self.delta_dims and not inside.all():
            chunk[np.ix_(~inside, self.delta_dims)] = 0
        return self.action_mode.to_relative(chunk, None if state is None else state[frame]), inside

    def rows(self, action: np.ndarray, state: np.ndarray | None) -> Iterator[np.ndarray]:
        """The actions of an episode that statistics are made of, in parts (N, D).

        As stored: every frame's action once. Otherwise every unpadded action of every frame's chunk.
        """
        if self.mode == "stored":
            yield action
            return
        at_once = max(1, _ROWS_AT_ONCE // len(self.action))
        for first in range(0, len(action), at_once):
            chunks = [self.actions(action, state, f) for f in range(first, min(first + at_once, len(action)))]
            yield np.concatenate([chunk[inside] for chunk, inside in chunks])


def kept_within(offsets: Sequence[int], frame: int, length: int) -> tuple[list[int], list[bool]]:
    """Frames of an episode at `offsets` from one of them, kept within it, and which of them did not need to be."""
    wanted = [frame + offset for offset in offsets]
    kept = [min(max(position, 0), length - 1) for position in wanted]
    return kept, [position == there for position, there in zip(wanted, kept, strict=True)]


def make_window(
    action_horizon: int | None,
    delta_indices: Mapping[str, Iterable[int]] | None,
    mode: str,
    absolute_dims: Sequence[int],
    delta_dims: Sequence[int],
    action_dim: int,
    state_dim: int | None,
) -> Window:
    """A checked `Window`.

    Raises:
        ValueError: offsets, mode or dimensions that contradict each other or the dataset.
    """
    if not isinstance(delta_indices or {}, Mapping):
        raise ValueError(f"delta_indices maps {', '.join(_OFFSET_KEYS)} to frame offsets, got {delta_indices!r:.200}")
    given = dict(delta_indices or {})
    unknown = [key for key in given if key not in _OFFSET_KEYS]
    if unknown:
        raise ValueError(f"delta_indices names {unknown[0]!r}; possible: {', '.join(_OFFSET_KEYS)}")
    for key, offsets in given.items():
        offsets = given[key] = tuple(integers(f"delta_indices[{key!r}]", offsets))
        if not offsets or list(offsets) != sorted(set(offsets)):
            raise ValueError(f"delta_indices[{key!r}] must be ascending frame offsets, got {list(offsets)}")
    if "action" not in given:
        if not is_integer(action_horizon, least=1):
            raise ValueError(f"action_horizon must be a whole number of at least 1, got {action_horizon!r}")
        given["action"] = tuple(range(action_horizon))
    elif action_horizon is not None and action_horizon != len(given["action"]):
        raise ValueError(
            f"action_horizon is {action_horizon}, but delta_indices['action'] has {len(given['action'])} offsets; "
            "give one of them"
        )
    if "state" in given and not state_dim:
        raise ValueError("delta_indices asks for states, but the dataset has none")
    if mode not in ACTION_MODES:
        raise ValueError(f"unknown action_mode {mode!r}; possible: {', '.join(ACTION_MODES)}")
    absolute_dims = _dimensions("absolute_dims", absolute_dims, action_dim)
    if mode == "stored" and absolute_dims:
        raise ValueError(f"absolute_dims {list(absolute_dims)} have no meaning with action_mode 'stored'")
    if mode != "stored":
        if given["action"] != tuple(range(len(given["action"]))):
            raise ValueError(
                f"action_mode {mode!r} needs the actions 0, 1, 2, …; delta_indices gives {given['action']}"
            )
        relative = [d for d in range(action_dim) if d not in absolute_dims]
        clash = [d for d in relative if d in delta_dims]
        if clash:
            raise ValueError(f"action_mode is {mode!r}, but action dimension {clash[0]} is a difference as stored")
        if relative and relative[-1] >= (state_dim or 0):
            raise ValueError(
                f"action_mode {mode!r} takes action dimension d relative to state dimension d, but there are "
                f"{state_dim or 0} state dimensions for action dimension {relative[-1]}; name it in absolute_dims, or "
                "arrange the state by a column mapping"
            )
    return Window(**given, mode=mode, absolute_dims=absolute_dims, delta_dims=tuple(delta_dims))


def _dimensions(name: str, dims: Sequence[int], size: int) -> tuple[int, ...]:
    dims = integers(name, dims)
    bad = [d for d in dims if not -size <= d < size]
    if bad:
        raise ValueError(f"{name} names dimension {bad[0]} of {size}")
    return tuple(sorted({d % size for d in dims}))


def delta_dimensions(mapping, features) -> tuple[int, ...]:
    """The stored action dimensions that the column mapping calls differences."""
    sizes = [(part.size(features), part.delta) for part in mapping.action]
    return tuple(np.flatnonzero(np.repeat([delta for _, delta in sizes], [size for size, _ in sizes])).tolist())
