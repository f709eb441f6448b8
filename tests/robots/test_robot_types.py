"""The robot types' data files."""

import pytest

from hf_vla.robots.robot_types import ROBOTS, Robot, modes_for, with_target_rotations

EEF = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")
# StarVLA's robot types: action mode, binary action dimensions, horizon.
EXPECTED = {
    "oxe_bridge": ("q99", (-1,), 16),
    "oxe_rt1": ("q99", (-1,), 16),
    "libero_franka": ("min_max", (), 8),
    "vla_arena_franka": ("min_max", (), 8),
    "metaworld_robot": ("min_max", (), 8),
    "oxe_droid": ("none", (-1,), 16),
    "robotwin": ("min_max", (-2, -1), 16),
    "arx_x5": ("min_max", (-2, -1), 16),
    "fourier_gr1_arms_waist": ("min_max", (), 16),
    "panda_omron_robocasa365": ("min_max", (), 16),
    "unitree_g1_sonic_dex3": ("q99", (), 8),
}


def test_every_type_is_there():
    given = {key: (robot.action_mode, robot.binary_actions, robot.action_horizon) for key, robot in ROBOTS.items()}
    assert given == EXPECTED
    for key in ("oxe_bridge", "oxe_rt1", "libero_franka"):
        assert ROBOTS[key].action_names == EEF
    assert ROBOTS["oxe_bridge"].state_names == (*EEF[:6], "pad", "gripper")


def of(dimensions, **more):
    return {"mean": [0.0] * dimensions} | more


def test_modes_with_and_without_a_mask():
    assert modes_for("oxe_bridge", {"action": of(7), "state": of(8)}) == {
        "action": ["q99"] * 6 + ["binary"],
        "state": ["q99"] * 7 + ["binary"],
    }
    assert modes_for("robotwin", {"action": of(14)}) == {"action": ["min_max"] * 12 + ["binary"] * 2}
    masked = {"action": of(3, mask=[False, True, True])}
    assert modes_for("oxe_bridge", masked) == {"action": ["binary", "q99", "q99"]}
    assert modes_for("my_arm", masked) is None


def test_target_rotations():
    modality = {"action": {"eef_rotation_delta": {"start": 3}, "gripper": {"start": 6}}, "state": {}}
    changed = with_target_rotations("oxe_droid", modality)
    assert changed["action"]["eef_rotation_delta"] == {"start": 3, "target_rotation": "axis_angle"}
    assert changed["action"]["gripper"] == {"start": 6}
    assert modality["action"]["eef_rotation_delta"] == {"start": 3}
    assert with_target_rotations("oxe_bridge", modality) == with_target_rotations("my_arm", modality) == modality
    assert with_target_rotations("oxe_droid", None) is None


def test_a_mode_that_does_not_exist():
    with pytest.raises(ValueError, match="'q98'; known are q99"):
        Robot(action_mode="q98", state_mode="none", action_horizon=8)


@pytest.mark.parametrize(
    ("statistics", "message"),
    [
        ({"action": {}}, "statistics of the actions of 'oxe_bridge' are empty"),
        ({"action": [1.0]}, "statistics of the actions of 'oxe_bridge' are"),
        ([1.0], "statistics of 'oxe_bridge' are"),
        ({"action": of(3, mask=[True])}, "mask of the actions of 'oxe_bridge' has 1 entries for 3"),
    ],
)
def test_malformed_statistics(statistics, message):
    with pytest.raises(ValueError, match=message):
        modes_for("oxe_bridge", statistics)


def test_dimensions_are_counted_from_whatever_there_is():
    assert modes_for("oxe_bridge", {"action": {"q01": [0.0] * 2, "q99": [1.0] * 2}}) == {"action": ["q99", "binary"]}
    with pytest.raises(ValueError, match="'robotwin' are of 1 action dimensions"):
        modes_for("robotwin", {"action": of(1)})
