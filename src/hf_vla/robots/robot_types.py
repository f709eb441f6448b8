"""Normalisation modes and dimension names of StarVLA's robot types (StarVLA's semantics, section 7).

StarVLA's checkpoints hold statistics, not modes: those belong to the robot type that the data mixture named, which is also
the statistics key. A robot type whose dimensions are not listed is known by its mode alone. Each is a YAML file in
`hf_vla/robots/types`, with the fields of `Robot`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

import yaml

from .normalization import MODES, dimensions


@dataclass(frozen=True)
class Robot:
    """A robot type.

    Args:
        action_mode: how actions are normalised, but for those in `binary_actions`.
        state_mode: how states are normalised, but for those in `binary_states`.
        action_horizon: steps in a chunk.
        action_names, state_names: one name a dimension, or empty where they are not known.
        binary_actions, binary_states: dimensions (negative counts from the end) that are binary. For actions a mask in
            the statistics, false where they are binary, takes precedence.
        cameras: which of the dataset's cameras policies of this robot see, in order; empty for all.
        rotations: by part ("action", "state") and entry of the dataset's `meta/modality.json`, the representation that
            this rotation is converted to.
    """

    action_mode: str
    state_mode: str
    action_horizon: int
    action_names: tuple[str, ...] = ()
    state_names: tuple[str, ...] = ()
    binary_actions: tuple[int, ...] = ()
    binary_states: tuple[int, ...] = ()
    cameras: tuple[str, ...] = ()
    rotations: dict[str, dict[str, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for mode in (self.action_mode, self.state_mode):
            if mode not in MODES:
                raise ValueError(f"unknown normalisation mode {mode!r}; known are {', '.join(MODES)}")


def _load() -> dict[str, Robot]:
    robots = {}
    for file in sorted(files("hf_vla").joinpath("robots", "types").iterdir(), key=lambda file: file.name):
        fields = yaml.safe_load(file.read_text(encoding="utf-8"))
        fields = {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
        robots[file.name.removesuffix(".yaml")] = Robot(**fields)
    return robots


ROBOTS = _load()


def modes_for(key: str, statistics: dict) -> dict[str, list[str]] | None:
    """The modes {"action": one a dimension, "state": one a dimension} of a known robot type, else None.

    Args:
        key: statistics key, which in StarVLA is the robot type.
        statistics: its statistics {"action": {…, "mask"}, "state": {…}}.

    Raises:
        ValueError: the statistics are malformed, or have fewer dimensions than this robot type's.
    """
    robot = ROBOTS.get(key)
    if robot is None:
        return None
    if not isinstance(statistics, Mapping):
        raise ValueError(f"the statistics of {key!r} are {statistics!r:.80}; they map 'action' and 'state' to theirs")
    modes = {}
    for modality, base, binary in (
        ("action", robot.action_mode, robot.binary_actions),
        ("state", robot.state_mode, robot.binary_states),
    ):
        if modality not in statistics:
            continue
        dim = dimensions(statistics[modality], f"{modality}s of {key!r}")
        mask = statistics[modality].get("mask")
        if mask and len(mask) != dim:
            raise ValueError(f"the mask of the {modality}s of {key!r} has {len(mask)} entries for {dim} dimensions")
        if max((-index for index in binary), default=0) > dim:
            raise ValueError(f"the statistics of {key!r} are of {dim} {modality} dimensions; this robot type has more")
        modes[modality] = [base if used else "binary" for used in mask or [True] * dim]
        for index in binary if modality == "state" or not mask else ():
            modes[modality][index] = "binary"
    return modes


def with_target_rotations(key: str, modality: dict[str, Any] | None) -> dict[str, Any] | None:
    """The contents of `meta/modality.json` with a `target_rotation` wherever the robot type `key` wants one."""
    robot = ROBOTS.get(key)
    if robot is None or modality is None:
        return modality
    changed = dict(modality)
    for part, targets in robot.rotations.items():
        if isinstance(modality.get(part), dict):  # anything else is an error of whoever reads it
            changed[part] = {
                name: entry | {"target_rotation": targets[name]}
                if name in targets and isinstance(entry, dict)
                else entry
                for name, entry in modality[part].items()
            }
    return changed
