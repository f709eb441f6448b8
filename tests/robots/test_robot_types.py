"""The robot types' data files, a user's own, and what they say of a dataset's statistics."""

import numpy as np
import pytest

import hf_vla
from hf_vla.robots import Normalizer, find_robot, robot_names
from hf_vla.robots.robot_types import known_robot, robot_from_mapping, robots_with_key

EEF = ["x", "y", "z", "roll", "pitch", "yaw", "gripper"]
# StarVLA's robot types: statistics key, views, horizon, runs of (mode, dimensions) of the actions, and of the states.
EXPECTED = {
    "oxe_bridge": ("oxe_bridge", 1, 16, [("q99", 6), ("binary", 1)], [("q99", 7), ("binary", 1)]),
    "oxe_rt1": ("oxe_rt1", 1, 16, [("q99", 6), ("binary", 1)], [("q99", 7), ("binary", 1)]),
    "oxe_droid": ("oxe_droid", 3, 16, [("none", 6), ("binary", 1)], [("min_max", 3), ("none", 6), ("min_max", 1)]),
    "libero_franka": ("franka", 2, 8, [("min_max", 6), ("none", 1)], [("none", 8)]),
    "openpi_libero_franka": ("openpi_pi0_libero_franka", 2, 50, [("q99", 7)], [("q99", 8)]),
    "vla_arena_franka": ("franka", 2, 8, [("min_max", 6), ("none", 1)], [("none", 7)]),
    "metaworld_robot": ("new_embodiment", 1, 8, [("min_max", 4)], [("none", 4)]),
    "robotwin": ("new_embodiment", 3, 16, [("min_max", 12), ("binary", 2)], [("min_max", 12), ("binary", 2)]),
    "robotwin50": ("new_embodiment", 3, 50, [("min_max", 12), ("binary", 2)], [("min_max", 12), ("binary", 2)]),
    "arx_x5": ("new_embodiment", 3, 16, [("min_max", 12), ("binary", 2)], [("min_max", 12), ("binary", 2)]),
    "fourier_gr1_arms_waist": ("gr1", 1, 16, [("min_max", 29)], [("sin_cos", 29)]),
    "panda_omron_robocasa365": ("new_embodiment", 3, 16, [("min_max", 12)], [("sin_cos", 16)]),
    "robodojo_arx_x5_h50_q99": ("arx_x5", 3, 50, [("q99", 14)], [("q99", 14)]),
    "custom_robot_config": ("new_embodiment", 2, 16, [("min_max", 6), ("binary", 1)], [("min_max", 6)]),
    "demo_sim_franka_delta_joints": ("franka", 2, 16, [("min_max", 7), ("binary", 1)], [("min_max", 7)]),
    "SO101": ("new_embodiment", 2, 16, [("min_max", 6)], [("min_max", 6)]),
    "unitree_g1_sonic_dex3": ("new_embodiment", 1, 8, [("q99", 78)], [("q99", 72)]),
    "ur5_robochallenge": ("new_embodiment", 2, 8, [("min_max", 8)], [("min_max", 7)]),
    "arx5_robochallenge": ("new_embodiment", 3, 8, [("min_max", 8)], [("min_max", 7)]),
    "dosw1_robochallenge": ("new_embodiment", 3, 8, [("min_max", 8)], [("min_max", 7)]),
    "realman_rm75_delta_joints": ("new_embodiment", 2, 50, *[[("mean_std", 7), ("min_max", 1)]] * 2),
    "realman_rm75_delta_joints_dp": ("new_embodiment", 2, 16, *[[("mean_std", 7), ("min_max", 1)]] * 2),
}


def of(dimensions, **more):
    return {"mean": [0.0] * dimensions} | more


def test_every_type_of_starvla_is_there():
    assert set(EXPECTED) == set(robot_names())


@pytest.mark.parametrize("name", EXPECTED)
def test_type(name):
    robot = find_robot(name)
    key, views, horizon, *runs = EXPECTED[name]
    assert (robot.unnorm_key, len(robot.cameras), robot.action_horizon) == (key, views, horizon)
    action, state = ([mode for mode, size in modality for _ in range(size)] for modality in runs)
    assert robot.modes({"action": of(len(action)), "state": of(len(state))}, key) == {"action": action, "state": state}
    assert robot.binary_threshold == (0.49 if name == "robotwin50" else 0.5)
    assert len(robot.action.names) == len(action) and len(robot.state.names) == len(state)


def test_keys_in_order():
    assert find_robot("libero_franka").action.names == EEF
    assert find_robot("oxe_bridge").state.names == [*EEF[:6], "pad", "gripper"]
    arms = {"left_joints": 6, "right_joints": 6, "left_gripper": 1, "right_gripper": 1}
    assert list(find_robot("robotwin").action.keys.items()) == list(arms.items())
    dojo = list(find_robot("robodojo_arx_x5_h50_q99").action.keys)
    assert dojo == ["left_joints", "left_gripper", "right_joints", "right_gripper"]
    assert find_robot("fourier_gr1_arms_waist").options() == {"sin_cos_sizes": [7, 7, 6, 6, 3]}
    assert {"libero_franka", "vla_arena_franka"} < set(robots_with_key("franka"))
    assert known_robot("franka") is None


def test_a_mask_is_not_a_switch():
    masked = {"action": of(7, mask=[False, True, True, True, True, True, True])}
    assert find_robot("libero_franka").modes(masked, "franka") == {"action": ["min_max"] * 6 + ["none"]}


def test_statistics_of_another_robot():
    robot = find_robot("robotwin")
    with pytest.raises(
        ValueError, match="'arm' have 7 action dimensions, but robot type 'robotwin' has 14 .left_joints 6,"
    ):
        robot.modes({"action": of(7)}, "arm")
    statistics = {"action": of(14), "state": of(8)}
    assert robot.modes(statistics, "arm").keys() == {"action"}  # a policy that is not given the state works
    with pytest.raises(ValueError, match="'arm' have 8 state dimensions, but robot type 'robotwin' has 14"):
        robot.check(statistics["state"], "arm", "state")


@pytest.mark.parametrize(
    ("statistics", "message"),
    [
        ({"action": {}}, "statistics of the actions of 'oxe_bridge' are empty"),
        ({"action": [1.0]}, "statistics of the actions of 'oxe_bridge' are"),
        ([1.0], "statistics of 'oxe_bridge' are"),
    ],
)
def test_malformed_statistics(statistics, message):
    with pytest.raises(ValueError, match=message):
        find_robot("oxe_bridge").modes(statistics, "oxe_bridge")


OWN = {
    "action_keys": {"joints": 3, "gripper": 1},
    "action_normalization": {"joints": "q99", "gripper": "binary"},
    "state_normalization": "min_max",
    "binary_threshold": 0.04,
    "action_mode": "relative",
    "absolute_dims": ["gripper"],
    "cameras": ["front"],
    "action_horizon": 8,
}


@pytest.fixture
def own_robots(monkeypatch):
    monkeypatch.setattr("hf_vla.robots.robot_types._REGISTERED", {})


def test_a_users_file_is_as_good_as_ours(tmp_path, own_robots):
    import yaml

    file = tmp_path / "my_arm.yaml"
    file.write_text(yaml.safe_dump(OWN, sort_keys=False))
    robot = find_robot(file)
    assert robot == find_robot(str(file)) == robot_from_mapping("my_arm", OWN)
    assert (robot.name, robot.unnorm_key, robot.cameras, robot.action_horizon) == ("my_arm", "my_arm", ("front",), 8)
    modes = robot.modes({"action": of(4), "state": of(9)}, "my_arm")
    assert modes == {"action": ["q99"] * 3 + ["binary"], "state": ["min_max"] * 9}
    assert robot.options() == {"binary_threshold": 0.04}
    assert robot.mode_of_actions(4).entries() == {"action_mode": "relative", "absolute_dims": [3]}
    assert known_robot("my_arm") is None
    assert hf_vla.register_robot("my_arm", file) == hf_vla.register_robot("my_arm", OWN) == find_robot("my_arm")
    assert "my_arm" in robot_names()
    with pytest.raises(ValueError, match="'my_arm' is a robot type already"):
        hf_vla.register_robot("my_arm", OWN | {"action_horizon": 9})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"action_normalisation": "q99"}, "unknown field 'action_normalisation'.*did you mean action_normalization"),
        ({"state_normalization": "q98"}, "unknown normalisation mode 'q98' in state_normalization; known are q99"),
        ({"action_normalization": {"joints": "q99"}}, "action_normalization and action_keys differ in gripper"),
        ({"action_normalization": ["q99"]}, "lists 1 modes for the 4 dimensions of action_keys"),
        ({"action_normalization": "sin_cos"}, "sin_cos, which has no inverse"),
        ({"action_keys": ["a", "a"], "action_normalization": "q99"}, "names a key twice"),
        ({"action_keys": {"joints": 0}, "action_normalization": "q99"}, "action_keys is .*numbers of dimensions"),
        ({"action_horizon": 0}, "action_horizon is 0; give a positive whole number"),
        ({"action_horizon": "8"}, "action_horizon is '8'"),
        ({"action_mode": "velocity"}, "'velocity'; possible: stored, delta, relative"),
        ({"action_mode": "stored"}, "absolute_dims have no meaning with action_mode 'stored'"),
        ({"absolute_dims": ["griper"]}, "no key 'griper'.*did you mean gripper"),
        ({"cameras": "front"}, "cameras is 'front'; give a list of names"),
        ({"action_rotations": {"joints": "rotation_6d"}}, "makes 'joints' 'rotation_6d' of 3 dimensions"),
        ({"action_rotations": {"wrist": "matrix"}}, "names 'wrist', which is not among action_keys"),
    ],
)
def test_mistakes_in_a_description(changes, message):
    with pytest.raises(ValueError, match=message):
        robot_from_mapping("my_arm", OWN | changes)


def test_what_is_not_a_robot_type(tmp_path, own_robots):
    with pytest.raises(
        ValueError, match="'libero_frank' is not a robot type and not a YAML file;.*did you mean libero_franka"
    ):
        find_robot("libero_frank")
    (tmp_path / "bad.yaml").write_text("a: [")
    with pytest.raises(ValueError, match="bad.yaml is not valid YAML"):
        find_robot(tmp_path / "bad.yaml")
    (tmp_path / "list.yaml").write_text("- q99")
    with pytest.raises(ValueError, match="list.yaml: a robot type is a mapping"):
        find_robot(tmp_path / "list.yaml")
    with pytest.raises(FileNotFoundError, match="missing.yaml is missing"):
        hf_vla.register_robot("mine", tmp_path / "missing.yaml")
    with pytest.raises(ValueError, match="'oxe_bridge' is a robot type already"):
        hf_vla.register_robot("oxe_bridge", OWN)


def test_states_of_sines_and_cosines():
    robot = find_robot("panda_omron_robocasa365")
    modes = robot.modes({"state": of(16)}, "arm")["state"]
    state = np.random.default_rng(0).normal(size=(2, 1, 16)).astype(np.float32)
    normalizer = Normalizer(of(16), modes, "states", **robot.options())
    encoded, begin = [], 0
    for size in (3, 4, 3, 4, 2):
        part = state[..., begin : begin + size]
        encoded += [np.sin(part), np.cos(part)]
        begin += size
    encoded = np.concatenate(encoded, axis=-1)
    np.testing.assert_array_equal(normalizer.normalize(state), encoded)
    assert normalizer.encoded_dim == 32
    np.testing.assert_array_equal(normalizer.normalize(encoded), encoded)  # StarVLA's clients send them so
    with pytest.raises(ValueError, match="last dimension must be 16 or 32"):
        normalizer.normalize(state[..., :5])
