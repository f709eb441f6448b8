"""The recipes that come with the package run: here on stand-ins for their data and backbones."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from tiny_vlms import write_tiny_vlm

from hf_vla.commands.train import main
from hf_vla.data import LeRobotWriter
from hf_vla.data.named_mixtures import read_mixture
from hf_vla.robots import find_robot
from hf_vla.training.run_log import read_summary

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def backbone(tmp_path_factory) -> Path:
    return write_tiny_vlm(tmp_path_factory.mktemp("vlm"))


def write_members(root: Path, mixture: str) -> Path:
    """For each member of a mixture, two short episodes with the robot's cameras, state and action."""
    rng = np.random.default_rng(0)
    for entry in read_mixture(mixture):
        robot = find_robot(entry["robot"])
        cameras, state_names = robot.cameras, robot.state.names
        features = {f"observation.images.{c}": {"dtype": "video", "shape": (32, 32, 3)} for c in cameras}
        features = {name: feature | {"names": ["height", "width", "channels"]} for name, feature in features.items()}
        features["observation.state"] = {"dtype": "float32", "shape": (len(state_names),), "names": state_names}
        features["action"] = {"dtype": "float32", "shape": (7,), "names": robot.action.names}
        with LeRobotWriter(root / entry["dataset"], fps=5, features=features, robot_type="as recorded") as writer:
            for _ in range(2):
                for _ in range(6):
                    frame = {f"observation.images.{c}": rng.integers(0, 255, (32, 32, 3), np.uint8) for c in cameras}
                    frame["observation.state"] = rng.random(len(state_names), dtype=np.float32)
                    writer.add_frame(frame | {"action": rng.random(7, dtype=np.float32)})
                writer.save_episode(task="put the carrot on the plate")
    return root


@pytest.mark.parametrize(("recipe", "framework"), [("bridge_rt_1", "qwen_pi_v3"), ("libero", "qwen_gr00t")])
def test_recipe_runs(recipe, framework, backbone, tmp_path):
    path = ROOT / "src" / "hf_vla" / "recipes" / f"{recipe}.yaml"
    settings = yaml.safe_load(path.read_text())
    data = write_members(tmp_path / "data", settings["mixture"])
    small = ["--base_vlm", backbone, "--data_root", data, "--output_dir", tmp_path / "out", "--max_steps", 2]
    small += ["--per_device_train_batch_size", 2, "--dataloader_num_workers", 0, "--use_cpu", "true"]
    small += ["--save_strategy", "no", "--image_size", 32, 32, "--eval_episodes", 0.5, "--eval_strategy", "steps"]
    narrow = settings["policy_config"] | {"repeated_diffusion_steps": 1}
    narrow |= {"action_hidden_size": 64, "output_dim": 64} | (
        {} if framework == "qwen_pi_v3" else {"num_action_layers": 2}
    )
    main([str(a) for a in (path, *small, "--eval_steps", 2, "--policy_config", json.dumps(narrow))])
    row = read_summary(tmp_path / "out" / "summary.jsonl")[-2]
    keys = sorted({find_robot(entry["robot"]).unnorm_key for entry in read_mixture(settings["mixture"])})
    assert {f"eval_action_error/{key}/gripper" for key in keys} <= set(row)
    assert (f"eval_action_error/{keys[0]}" in row) == (len(keys) > 1)
    written = yaml.safe_load((tmp_path / "out" / "config.yaml").read_text())
    assert (written["framework"], written["learning_rate"]) == (framework, settings["learning_rate"])
