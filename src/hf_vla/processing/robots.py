"""Normalisation modes and dimension names of StarVLA's robot types (StarVLA's semantics, section 7).

StarVLA's checkpoints hold statistics, not modes: those belong to the robot type that the data mixture named, which is also
the statistics key. A robot type whose dimensions are not listed is known by its mode alone.
"""

from dataclasses import dataclass

_EEF = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")


@dataclass(frozen=True)
class Robot:
    """A robot type.

    Args:
        action_mode: how actions are normalised. Dimensions that the statistics' mask excludes are binary.
        state_mode: how states are normalised.
        binary_states: state dimensions (negative counts from the end) that are binary.
        action_names, state_names: one name a dimension, or empty where they are not known.
        action_horizon: steps in a chunk.
    """

    action_mode: str
    state_mode: str
    action_horizon: int
    action_names: tuple[str, ...] = ()
    state_names: tuple[str, ...] = ()
    binary_states: tuple[int, ...] = ()


_OXE = {"action_mode": "q99", "state_mode": "q99", "action_horizon": 16, "binary_states": (-1,)}
_MIN_MAX = {"action_mode": "min_max", "state_mode": "min_max"}

ROBOTS = {
    "oxe_bridge": Robot(
        **_OXE,
        action_names=_EEF,
        state_names=("x", "y", "z", "roll", "pitch", "yaw", "pad", "gripper"),
    ),
    "oxe_rt1": Robot(
        **_OXE,
        action_names=_EEF,
        state_names=("x", "y", "z", "rx", "ry", "rz", "rw", "gripper"),
    ),
    "libero_franka": Robot(**_MIN_MAX, action_horizon=8, action_names=_EEF),
    "vla_arena_franka": Robot(**_MIN_MAX, action_horizon=8, action_names=_EEF),
    "metaworld_robot": Robot(**_MIN_MAX, action_horizon=8, action_names=("dx", "dy", "dz", "gripper")),
    "oxe_droid": Robot(action_mode="none", state_mode="none", action_horizon=16),
    "robotwin": Robot(**_MIN_MAX, action_horizon=16),
    "arx_x5": Robot(**_MIN_MAX, action_horizon=16),
    "fourier_gr1_arms_waist": Robot(**_MIN_MAX, action_horizon=16),
    "panda_omron_robocasa365": Robot(**_MIN_MAX, action_horizon=16),
    "unitree_g1_sonic_dex3": Robot(action_mode="q99", state_mode="q99", action_horizon=8),
}


def modes_for(key: str, statistics: dict) -> dict[str, list[str]] | None:
    """The modes {"action": one a dimension, "state": one a dimension} of a known robot type, else None.

    Args:
        key: statistics key, which in StarVLA is the robot type.
        statistics: its statistics {"action": {…, "mask"}, "state": {…}}.
    """
    robot = ROBOTS.get(key)
    if robot is None:
        return None
    modes = {}
    for modality, base in (("action", robot.action_mode), ("state", robot.state_mode)):
        if modality not in statistics:
            continue
        dim = len(statistics[modality]["mean"])
        mask = statistics[modality].get("mask") or [True] * dim
        modes[modality] = [base if used else "binary" for used in mask]
    for index in robot.binary_states if "state" in modes else ():
        modes["state"][index] = "binary"
    return modes
