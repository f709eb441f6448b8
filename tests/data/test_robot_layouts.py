"""Datasets of StarVLA's robot types: whatever the order of meta/modality.json, the type's keys make up state and action."""

import json

import numpy as np
import pytest

from hf_vla.data import DatasetMixture, LeRobotDataset, LeRobotWriter

ARMS = {
    "left_joints": 6,
    "left_gripper": 1,
    "right_joints": 6,
    "right_gripper": 1,
}  # RoboTwin's files, and RoboDojo's order
GR1 = {
    "left_arm": 7,
    "left_hand": 6,
    "left_leg": 6,
    "neck": 3,
    "right_arm": 7,
    "right_hand": 6,
    "right_leg": 6,
    "waist": 3,
}


@pytest.fixture
def written(tmp_path):
    """A function that writes a dataset of these entries, columns numbered from 0 on, and a mixture of it."""

    def write(entries, robot, cameras, annotations=("human.action.task_description",)):
        size, root = sum(entries.values()), tmp_path / "data"
        features = {f"observation.images.{camera}": {"dtype": "video", "shape": (32, 32, 3)} for camera in cameras}
        features |= {name: {"dtype": "float32", "shape": (size,)} for name in ("action", "observation.state")}
        with LeRobotWriter(root, fps=5, features=features) as writer:
            for step in range(3):
                frame = {f"observation.images.{camera}": np.full((32, 32, 3), 9, np.uint8) for camera in cameras}
                row = np.arange(size, dtype=np.float32) + step / 10
                writer.add_frame(frame | {"action": row, "observation.state": row})
            writer.save_episode(task="lift the pot")
        begins = dict(zip(entries, np.cumsum([0, *entries.values()]).tolist(), strict=False))
        part = {key: {"start": begins[key], "end": begins[key] + size} for key, size in entries.items()}
        modality = {
            "action": part,
            "state": part,
            "video": {camera: {"original_key": f"observation.images.{camera}"} for camera in cameras},
            "annotation": {name: {"original_key": "task_index"} for name in annotations},
        }
        (root / "meta" / "modality.json").write_text(json.dumps(modality))
        (tmp_path / "mixture.yaml").write_text(f"- {{dataset: data, robot: {robot}}}")
        return DatasetMixture.from_name(tmp_path / "mixture.yaml", tmp_path).datasets[0]

    return write


@pytest.mark.parametrize(("robot", "horizon"), [("robotwin", 16), ("robotwin50", 50)])
def test_robotwin_has_its_joints_first(written, robot, horizon):
    dataset = written(ARMS, robot, ("cam_right_wrist", "cam_high", "cam_left_wrist"))
    order = [*range(6), *range(7, 13), 6, 13]
    item = dataset[0]
    np.testing.assert_array_equal(item["action"][0], order)
    np.testing.assert_array_equal(item["state"][0], order)
    assert item["action"].shape == (horizon, 14) and item["dataset"] == "new_embodiment"
    assert [camera.rsplit(".", 1)[-1] for camera in dataset.cameras] == [
        "cam_high",
        "cam_left_wrist",
        "cam_right_wrist",
    ]
    assert dataset.action_names[5:8] == ["left_joints_5", "right_joints_0", "right_joints_1"]
    again = LeRobotDataset(dataset.root, unnorm_key=robot)  # a key that is called like a robot type stands for both
    np.testing.assert_array_equal(again[0]["action"], item["action"])
    assert again.unnorm_key == robot


def test_gr1_leaves_out_legs_and_neck(written):
    dataset = written(GR1, "fourier_gr1_arms_waist", ("ego_view",), ("human.validity", "human.coarse_action"))
    expected = [*range(7), *range(22, 29), *range(7, 13), *range(29, 35), *range(41, 44)]
    item = dataset[0]
    np.testing.assert_array_equal(item["action"][0], expected)
    np.testing.assert_array_equal(item["state"][0], expected)
    assert (dataset.action_dim, dataset.unnorm_key, item["lang"]) == (29, "gr1", "lift the pot")


def test_a_dataset_that_is_only_called_so(written, caplog):
    dataset = written({"left_joints": 6, "left_gripper": 1}, "mine, action_horizon: 2", ("front",))
    named = LeRobotDataset(dataset.root, 2, unnorm_key="robotwin")
    assert named.robot is None and named.action_dim == 7
    assert "is called robotwin, but does not fit that robot type: meta/modality.json has no action" in caplog.text
    with pytest.raises(
        ValueError, match="no action right_joints, right_gripper, of which robot type 'robotwin' consists"
    ):
        LeRobotDataset(dataset.root, 2, robot="robotwin")


def test_robot_types_that_share_a_key_are_not_pooled(written, tmp_path):
    root = written(ARMS, "robotwin", ("cam_high", "cam_left_wrist", "cam_right_wrist")).root
    mixed = [LeRobotDataset(root, 16, robot=robot) for robot in ("robotwin", "arx_x5")]
    message = "statistics key 'new_embodiment' must be of one robot type: robotwin of .*arx_x5 of .*by unnorm_key"
    with pytest.raises(ValueError, match=message):
        _ = DatasetMixture(mixed).statistics
    mixed[1] = LeRobotDataset(root, 16, robot="arx_x5", unnorm_key="arx")
    assert DatasetMixture(mixed).statistics.keys() == {"new_embodiment", "arx"}
