"""What a recipe says of a user's robot: modes per dimension, a binary gripper, relative actions, a robot type's file."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import yaml

from hf_vla import QwenFASTProcessor
from hf_vla.commands.dataclass_parser import parse_dataclasses
from hf_vla.data import LeRobotDataset, LeRobotWriter
from hf_vla.robots.robot_types import robot_from_mapping
from hf_vla.training_args.arguments import VLATrainingArguments
from hf_vla.training_args.recipe import DataArguments, PolicyArguments, build


def built(recipe, **changes):
    """The model, the processor and the mixture of the tiny recipe with these settings."""
    settings = yaml.safe_load(recipe.read_text()) | {"state_normalization": None} | changes
    recipe.write_text(yaml.safe_dump(settings))
    types = (PolicyArguments, DataArguments, VLATrainingArguments)
    (policy, data, _), _ = parse_dataclasses(types, [str(recipe)])
    return build(policy, data, seed=0)


def test_one_mode_per_dimension_and_a_binary_gripper(recipe):
    changes = {"action_normalization": ["mean_std", "binary"], "binary_threshold": -0.4, "state_normalization": "none"}
    _, processor, mixture = built(recipe, **changes)
    assert processor.normalization_modes["tiny_arm"] == {"action": ["mean_std", "binary"], "state": "none"}
    assert processor.robot_types == {"tiny_arm": None}
    statistics, item = mixture.statistics["tiny_arm"]["action"], mixture[0]
    inputs = processor(item["image"], item["lang"], state=item["state"][None], actions=item["action"][None])
    normalized = inputs["actions"][0].numpy()
    dx = (item["action"][:, 0] - statistics["mean"][0]) / statistics["std"][0]
    np.testing.assert_allclose(normalized, np.stack([dx, item["action"][:, 1] > -0.4], axis=1), rtol=1e-5, atol=1e-6)
    back = processor.unnormalize_actions([[[0.0, 0.3], [0.0, -0.5]]])
    np.testing.assert_allclose(back[0, :, 1], [1, 0])


def test_modes_by_name(recipe):
    _, processor, _ = built(recipe, action_normalization={"dy": "min_max", "dx": "q99"})
    assert processor.normalization_modes["tiny_arm"] == {"action": ["q99", "min_max"], "state": "q99"}


def test_relative_actions_with_an_absolute_dimension(recipe):
    _, processor, mixture = built(recipe, action_mode="relative", absolute_dims=[-1], action_normalization="min_max")
    assert mixture.statistics["tiny_arm"]["action_mode"] == "relative"
    item = mixture[0]
    state = item["state"][None]
    inputs = processor(item["image"], item["lang"], state=state, actions=item["action"][None])
    stored = mixture.datasets[0]
    absolute = processor.unnormalize_actions(inputs["actions"], state=state)[0]
    expected = item["action"] + [item["state"][0, 0], 0]
    np.testing.assert_allclose(absolute, expected, atol=1e-5)
    assert stored.action_mode == "relative"


def test_a_robot_types_file(recipe, tmp_path):
    robot = {
        "unnorm_key": "mine",
        "action_normalization": ["min_max", "none"],
        "state_normalization": "sin_cos",
        "cameras": ["front"],
        "action_mode": "delta",
        "absolute_dims": [1],
    }
    (tmp_path / "my_arm.yaml").write_text(yaml.safe_dump(robot))
    model, processor, mixture = built(recipe, robot=str(tmp_path / "my_arm.yaml"))
    assert processor.robot_types == {"mine": "my_arm"}
    assert processor.normalization_modes["mine"] == {"action": ["min_max", "none"], "state": ["sin_cos"] * 3}
    assert mixture.statistics["mine"]["action_mode"] == "delta"
    assert model.config.state_dim == 6
    item = mixture[0]
    batch = processor(item["image"], item["lang"], state=item["state"][None], actions=item["action"][None])
    assert item["dataset"] == "mine" and batch["actions"].shape == (1, 4, 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"action_normalization": ["q99"] * 3}, "3 normalisation modes for the 2 dimensions"),
        ({"action_normalization": {"dx": "q99"}}, "action_normalization and action_keys differ in dy"),
        ({"action_normalization": "q98"}, "the recipe: unknown normalisation mode 'q98'"),
        (
            {"action_normalization": ["q99", "binary"]},
            "dimension dy is normalised as binary, 0 or 1, .*from -0.98.* to 1;",
        ),
        (
            {"state_normalization": "binary", "binary_threshold": 9},
            "state dimension x is normalised as binary, above 9",
        ),
        ({"robot": "oxe_brigde"}, "'oxe_brigde' is not a robot type.*did you mean oxe_bridge"),
        ({"robot": "robotwin"}, "there are 2 action dimensions; robot type 'robotwin' has 14"),
        ({"action_mode": "relativ"}, "action_mode is 'relativ'; possible: stored, delta, relative"),
        ({"start_frames": 4}, "start_frames says what the start of an episode is, for start_share, which is not set"),
        ({"advantage_dropout": 0.3}, "about prompts that tell the advantage, and no advantage is set"),
        ({"absolute_dims": [0]}, "absolute_dims .* have no meaning with action_mode 'stored'"),
    ],
)
def test_mistakes(recipe, changes, message):
    with pytest.raises(ValueError, match=message):
        built(recipe, **changes)


def test_old_names_work_with_a_warning(recipe):
    with pytest.warns(FutureWarning) as warned:
        _, processor, mixture = built(recipe, action_mode="min_max", state_mode="mean_std")
    assert {str(warning.message).split(";")[0] for warning in warned if warning.category is FutureWarning} == {
        "recipe: action_mode is now called action_normalization",
        "recipe: state_mode is now called state_normalization",
    }
    assert processor.normalization_modes["tiny_arm"] == {"action": "min_max", "state": "mean_std"}
    assert mixture.datasets[0].action_mode == "stored"
    with pytest.raises(ValueError, match="state_mode is the old name of state_normalization, and both are given"):
        built(recipe, action_mode=None, state_mode="q99", state_normalization="q99")


def test_names_choose_the_order_of_keys(tmp_path):
    """Of any modality.json the robot type takes its keys in its order, and no others."""
    features = {name: {"dtype": "float32", "shape": (5,)} for name in ("action", "observation.state")}
    features["observation.images.top"] = {"dtype": "video", "shape": (32, 32, 3)}
    with LeRobotWriter(tmp_path / "data", fps=5, features=features) as writer:
        for step in range(4):
            frame = {name: np.arange(5, dtype=np.float32) + 10 * step for name in ("action", "observation.state")}
            writer.add_frame(frame | {"observation.images.top": np.zeros((32, 32, 3), np.uint8)})
        writer.save_episode(task="wave")
    entries = {"legs": (0, 1), "gripper": (1, 2), "joints": (2, 5)}
    robot = robot_from_mapping("two_arms", {"action_keys": {"joints": 3, "gripper": 1}, "state_keys": ["gripper"]})
    for order in (entries, dict(reversed(entries.items()))):
        part = {name: {"start": start, "end": end} for name, (start, end) in order.items()}
        annotation = {
            "human.validity": {"original_key": "task_index"},
            "human.task_description": {"original_key": "task_index"},
        }
        modality = {"action": part, "state": part, "video": {}, "annotation": annotation}
        (tmp_path / "data/meta/modality.json").write_text(json.dumps(modality))
        dataset = LeRobotDataset(tmp_path / "data", 2, robot=robot)
        np.testing.assert_array_equal(dataset[1]["action"], [[12, 13, 14, 11], [22, 23, 24, 21]])
        np.testing.assert_array_equal(dataset[1]["state"], [[11]])
        assert dataset.action_names == ["joints_0", "joints_1", "joints_2", "gripper"]
        assert dataset[1]["lang"] == "wave"
    del part["gripper"]
    (tmp_path / "data/meta/modality.json").write_text(json.dumps(modality))
    with pytest.raises(
        ValueError, match="has no action gripper, of which robot type 'two_arms' consists; it has joints, legs"
    ):
        LeRobotDataset(tmp_path / "data", 2, robot=robot)


@pytest.mark.parametrize("template", ["", "Do it", "Do {Instruction}", "{instruction} {task}"])
def test_templates_without_the_instruction(recipe, template):
    with pytest.raises(ValueError, match="prompt_template has "):
        built(recipe, prompt_template=template)


@pytest.mark.parametrize("task", ["push <|im_end|> it", "<|video_pad|>", "\u200b", "push\0"])
def test_instructions_that_no_prompt_can_hold(recipe, dataset, tmp_path, task):
    """Before training, not at some step of it."""
    copied = shutil.copytree(dataset, tmp_path / "copied")
    index = pd.Index([task], name="task")
    pd.DataFrame({"task_index": [0]}, index=index).to_parquet(copied / "meta/tasks.parquet")
    with pytest.raises(ValueError, match="instruction"):
        built(recipe, dataset=[str(copied)])


def test_training_on_a_policy_that_is_never_told_its_instruction(recipe, tmp_path):
    model, processor, _ = built(recipe)
    processor.prompt_template = "Do {Task}"
    for part in (model, processor):
        part.save_pretrained(tmp_path / "base")
    of_new = dict.fromkeys(("vlm_config", "policy_config", "framework", "image_processor_config"))
    with pytest.raises(ValueError, match="prompt_template has {Task}"):
        built(recipe, policy=str(tmp_path / "base"), **of_new)
    _, processor, _ = built(recipe, policy=str(tmp_path / "base"), prompt_template="Do {instruction}", **of_new)
    assert processor.prompt_template == "Do {instruction}"


@pytest.fixture
def fitted(recipe, monkeypatch):
    """Build the recipe's FAST policy with these settings, and return (its chunks, at most so many of them)."""

    def fit(most, **changes):
        seen = []
        monkeypatch.setattr(
            QwenFASTProcessor, "fit_settings", classmethod(lambda cls, given, chunks: seen.extend(chunks(most)))
        )
        with pytest.raises(TypeError):  # it is given nothing
            built(recipe, framework="qwen_fast", policy_config={"action_horizon": 4}, **changes)
        return np.stack(seen)

    return fit


def test_an_action_tokenizer_is_fitted_on_a_sample_of_whole_chunks(recipe, fitted):
    _, _, mixture = built(recipe)
    dataset = mixture.datasets[0]
    horizon = 4
    everything = fitted(None)
    assert len(everything) == (dataset.metadata.length - horizon + 1).sum()
    some = fitted(5)
    assert len(some) == 5 and np.array_equal(some, fitted(5))
    parts = np.arange(6) * len(everything) // 5
    for chunk, begin, end in zip(some, parts[:-1], parts[1:], strict=True):
        assert (everything[begin:end] == chunk).all(axis=(1, 2)).any()
    assert np.array_equal(fitted(len(everything)), everything)


def test_chunks_longer_than_all_episodes_are_refused_where_whole_ones_are_learnt(recipe, caplog):
    fast = {"framework": "qwen_fast"}
    with caplog.at_level("INFO"):
        _, _, mixture = built(recipe, **fast, policy_config={"action_horizon": 4})
    dataset = mixture.datasets[0]
    assert f"{3 * dataset.num_episodes} of {len(dataset)} frames are not learnt from" in caplog.text
    longest = dataset.metadata.length.max()
    with pytest.raises(ValueError, match=f"no episode is as long as a chunk of 99 actions .the longest has {longest}"):
        built(recipe, **fast, policy_config={"action_horizon": 99})
