"""What training leaves in the contract of inputs, and what a run that continues a policy may change of it."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import yaml
from transformers import AutoModel, AutoProcessor
from transformers.utils import logging

from hf_vla import Policy
from hf_vla.commands.merge import main as merge
from hf_vla.commands.train import main as train
from hf_vla.data import DatasetMixture, LeRobotDataset, LeRobotWriter, VLADataCollator
from hf_vla.processing.input_contract import InputContract
from hf_vla.training.trainer import VLATrainer
from hf_vla.training_args.arguments import VLATrainingArguments
from hf_vla.training_args.recipe import DataArguments, PolicyArguments, build

SIZES = {"front": (32, 48), "wrist": (32, 32)}  # height, width


@pytest.fixture(autouse=True)
def said_again():
    logging.warning_once.cache_clear()


def write_dataset(root, scale: float = 1, fps: int = 10, state_names=("x", "y", "z"), sizes=SIZES):
    features = {f"observation.images.{name}": {"dtype": "video", "shape": (*size, 3)} for name, size in sizes.items()}
    features["observation.state"] = {"dtype": "float32", "shape": (3,), "names": list(state_names)}
    features["action"] = {"dtype": "float32", "shape": (2,), "names": ["dx", "dy"]}
    rng = np.random.default_rng(0)
    with LeRobotWriter(root, fps=fps, features=features, robot_type="tiny_arm") as writer:
        for step in range(12):
            frame = {
                f"observation.images.{name}": rng.integers(0, 255, (*size, 3), dtype=np.uint8)
                for name, size in sizes.items()
            }
            frame["observation.state"] = rng.normal(size=3).astype(np.float32)
            frame["action"] = scale * np.array([np.sin(step), np.cos(step)], dtype=np.float32)
            writer.add_frame(frame)
        writer.save_episode(task="push the block")
    return root


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data") / "two_cameras")


@pytest.fixture(scope="module")
def base(data, recipe_in, tmp_path_factory):
    """A policy that was trained on both cameras and the state, in modes that are not the default."""
    folder = tmp_path_factory.mktemp("base")
    run(recipe_in(folder), dataset=[data], state_normalization="mean_std", action_normalization="min_max")
    return folder / "policy"


def run(recipe, **changed) -> None:
    """One step of training by a recipe's settings, with `changed` as flags on top."""
    settings = yaml.safe_load(recipe.read_text()) | {"max_steps": 1, "warmup_steps": 0}
    recipe.write_text(yaml.safe_dump(settings))
    flags = []
    for name, value in changed.items():
        flags += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    train([str(recipe), *flags])


def continued(base, data, new_inputs: bool = False, **settings):
    """The processor of a run that continues a policy, before its first step."""
    arguments = DataArguments(dataset=[str(data)], **settings)
    return build(PolicyArguments(policy=str(base), new_inputs=new_inputs), arguments, seed=0)[1]


def said(caplog) -> str:
    return "\n".join(record.getMessage() for record in caplog.records)


def test_what_training_records(base, data):
    expected = InputContract(
        cameras=["front", "wrist"],
        image_sizes=[[48, 32], [32, 32]],
        uses_state=True,
        state_names=["x", "y", "z"],
        action_names=["dx", "dy"],
        fps=10,
        instruction_template="{instruction}",
        robot_type="tiny_arm",
    )
    policy = Policy.from_pretrained(str(base), device="cpu")
    assert policy.processor.input_contract == expected == policy.input_contract
    item = LeRobotDataset(data, action_horizon=4)[0]
    observation = {"image": item["image"], "lang": item["lang"], "state": item["state"]}
    actions = policy.infer(observation, seed=0)
    by_name = dict(zip(("wrist", "front"), reversed(item["image"]), strict=True))
    assert np.array_equal(policy.infer(observation | {"image": by_name}, seed=0), actions)
    for changed, message in (({"image": item["image"][:1]}, "trained with 2"), ({"state": None}, "lacks 'state'")):
        with pytest.raises(ValueError, match=message):
            policy.infer(observation | changed)
    # Nothing resizes: a larger image has as many tokens as those of the training.
    large = [image.resize((1920, 1080)) for image in item["image"]]
    lengths = {len(policy.predict(observation | {"image": images}).input_ids) for images in (item["image"], large)}
    assert len(lengths) == 1


@pytest.mark.parametrize(
    ("settings", "fields"),
    [
        ({"use_state": False}, {"uses_state": False, "state_names": None}),
        ({"cameras": ["wrist", "front"]}, {"cameras": ["wrist", "front"], "image_sizes": [[32, 32], [48, 32]]}),
        ({"image_size": [64, 64]}, {"image_sizes": None}),
        ({"augmentation": {"size": [40, 40]}}, {"image_sizes": [[40, 40], [40, 40]]}),
        ({"prompt_template": "Do: {instruction}"}, {"instruction_template": "Do: {instruction}"}),
    ],
    ids=["state", "cameras", "image_size", "augmentation", "template"],
)
def test_what_a_recipe_changes(data, recipe, settings, fields):
    policy = yaml.safe_load(recipe.read_text())
    policy = {
        name: policy[name]
        for name in ("framework", "vlm_config", "policy_config", "image_processor_config")
        if name in policy
    }
    contract = build(PolicyArguments(**policy), DataArguments(dataset=[str(data)], **settings), seed=0)[
        1
    ].input_contract
    assert {name: getattr(contract, name) for name in fields} == fields


def test_training_without_a_recipe_records_it_too(base, data, tmp_path):
    model, processor = AutoModel.from_pretrained(base), AutoProcessor.from_pretrained(base, input_contract={})
    mixture = DatasetMixture([LeRobotDataset(data, action_horizon=4)])
    arguments = VLATrainingArguments(output_dir=str(tmp_path), use_cpu=True, max_steps=1)
    VLATrainer(
        model,
        arguments,
        train_dataset=mixture,
        processing_class=processor,
        data_collator=VLADataCollator(processor, use_state=False),
    )
    assert processor.input_contract.cameras == ["front", "wrist"]
    assert processor.input_contract.uses_state is False


def test_the_same_data_keeps_the_modes(base, data, caplog):
    before, after = AutoProcessor.from_pretrained(base), continued(base, data)
    assert before.normalization_modes == {"tiny_arm": {"action": "min_max", "state": "mean_std"}}
    assert after.normalization_modes == before.normalization_modes
    assert after.input_contract == before.input_contract
    assert not any(word in said(caplog) for word in ("replaced", "normalised by", "trained on"))
    after = continued(base, data, action_normalization=["q99"])
    assert after.normalization_modes == {"tiny_arm": {"action": "q99", "state": "mean_std"}}
    assert "actions of 'tiny_arm' are normalised by q99" in said(caplog) and "was trained with min_max" in said(caplog)


def test_other_data_of_the_same_key(base, tmp_path, caplog):
    processor = continued(base, write_dataset(tmp_path / "other", scale=3, fps=50))
    assert processor.statistics["tiny_arm"]["action"]["max"][1] == 3
    assert processor.normalization_modes["tiny_arm"]["action"] == "min_max"
    assert "the statistics of 'tiny_arm' are replaced by those of this run's data" in said(caplog)
    assert "50 frames per second; the policy was trained on 10" in said(caplog)


def test_statistics_that_are_kept(base, tmp_path, caplog):
    other = write_dataset(tmp_path / "other", scale=3)
    before = AutoProcessor.from_pretrained(base).statistics
    arguments = PolicyArguments(policy=str(base), keep_statistics=True)
    _, processor, mixture = build(arguments, DataArguments(dataset=[str(other)]), seed=0)
    assert processor.statistics == before
    assert "actions of 'tiny_arm' go beyond the range" in said(caplog) and "the dimensions 0, 1" in said(caplog)
    # Hence the same action stays the same number to the policy.
    item = mixture.datasets[0][0]
    batch = VLADataCollator(processor)([item])
    old = AutoProcessor.from_pretrained(base).normalizer("tiny_arm", "action")
    assert np.allclose(batch["actions"][0].numpy(), old.normalize(item["action"]), atol=1e-6)
    caplog.clear()
    same = write_dataset(tmp_path / "same")
    build(arguments, DataArguments(dataset=[str(same)]), seed=0)
    assert "beyond the range" not in said(caplog)
    with pytest.raises(ValueError, match="keep_statistics keeps those of policy, and no policy is set"):
        PolicyArguments(vlm_config={"model_type": "qwen3_vl"}, keep_statistics=True)


def test_data_of_a_new_key(base, data, tmp_path, caplog):
    shutil.copytree(data, tmp_path / "copy")
    info = tmp_path / "copy" / "meta" / "info.json"
    info.write_text(json.dumps(json.loads(info.read_text()) | {"robot_type": "hand"}))
    processor = continued(base, tmp_path / "copy", cameras=["wrist"])
    assert processor.normalization_modes["hand"] == {"action": "min_max", "state": "mean_std"}
    assert processor.input_contract.of("hand").cameras == ["wrist"]
    assert processor.input_contract.of("tiny_arm").cameras == ["front", "wrist"]
    assert processor.input_contract.uses_state
    assert "was trained on tiny_arm; hand is new to it" in said(caplog)


def test_images_of_another_size_are_resized_as_before(base, tmp_path, caplog):
    larger = {"front": (64, 96), "wrist": (64, 64)}
    processor = continued(base, write_dataset(tmp_path / "larger", sizes=larger))
    assert processor.input_contract.image_sizes == [[48, 32], [32, 32]]
    assert "images of 96x64, 64x64 are resized to 48x32, 32x32, at which the policy was trained" in said(caplog)
    assert continued(base, tmp_path / "larger", image_size=[64, 64]).image_size == [64, 64]
    assert "image_size is [64, 64]" in said(caplog)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"cameras": ["front"]},
            "its cameras are front, wrist, in this order, the data's front: add --cameras front wrist",
        ),
        ({"cameras": ["wrist", "front"]}, "the data's wrist, front: add --cameras front wrist"),
        ({"use_state": False}, "trained with the robot's state: add --use_state true"),
        ({"action_mode": "relative"}, "its actions are 'stored', the data's 'relative': add --action_mode stored"),
    ],
    ids=["fewer", "swapped", "state", "relative"],
)
def test_other_inputs_are_refused(base, data, settings, message, caplog):
    with pytest.raises(ValueError, match=message):
        continued(base, data, **settings)
    contract = continued(base, data, new_inputs=True, **settings).input_contract
    assert contract.cameras == settings.get("cameras", ["front", "wrist"])
    assert "is trained for other inputs of 'tiny_arm' than before" in said(caplog)


def test_cameras_may_go_by_any_of_their_names(base, data, tmp_path):
    """Native checkpoints have a robot type's names, such as those of a column mapping or of meta/modality.json."""
    processor = AutoProcessor.from_pretrained(base)
    named = ["high", "observation.images.wrist"]
    processor.input_contract = dataclasses.replace(processor.input_contract, cameras=named)
    shutil.copytree(base, tmp_path / "named")
    processor.save_pretrained(tmp_path / "named")
    keys = {name: f"observation.images.{name}" for name in ("front", "wrist")}
    for images in ({"high": keys["front"], "low": keys["wrist"]}, {"high": keys["wrist"], "low": keys["front"]}):
        columns = tmp_path / "columns.yaml"
        columns.write_text(yaml.safe_dump({"images": images}))
        if images["low"] == keys["wrist"]:
            assert continued(tmp_path / "named", data, columns=str(columns)).input_contract.cameras == named
        else:
            with pytest.raises(ValueError, match="its cameras are high, observation.images.wrist"):
                continued(tmp_path / "named", data, columns=str(columns))


def test_dimensions_in_another_order_are_refused(base, tmp_path):
    other = write_dataset(tmp_path / "other", state_names=("y", "x", "z"))
    with pytest.raises(ValueError, match="its state is x, y, z, the data's y, x, z: put them into the same order"):
        continued(base, other)


def test_a_policy_without_state_stays_without(base, data, tmp_path):
    processor = AutoProcessor.from_pretrained(base)
    processor.input_contract = dataclasses.replace(processor.input_contract, uses_state=False)
    shutil.copytree(base, tmp_path / "blind")
    processor.save_pretrained(tmp_path / "blind")
    with pytest.raises(ValueError, match="trained without the robot's state: add --use_state false"):
        continued(tmp_path / "blind", data)
    assert continued(tmp_path / "blind", data, use_state=False).input_contract.uses_state is False


def test_an_adapter_and_what_it_is_merged_into(base, data, tmp_path):
    """Modes and contract of the base, in the adapter's folder and in the merged one."""
    arguments = ["--policy", base, "--dataset", data, "--output_dir", tmp_path / "adapter", "--use_peft", "true"]
    arguments += ["--max_steps", 1, "--use_cpu", "true", "--per_device_train_batch_size", 2]
    train([str(argument) for argument in arguments])
    merge([str(tmp_path / "adapter"), str(tmp_path / "merged")])
    before = AutoProcessor.from_pretrained(base)
    for folder in ("adapter", "merged"):
        processor = AutoProcessor.from_pretrained(tmp_path / folder)
        assert processor.input_contract == before.input_contract
        assert processor.normalization_modes == before.normalization_modes
        saved = json.loads((tmp_path / folder / "config.json").read_text())
        assert "import hf_vla" in saved["auto_map"]["AutoConfig"]


def test_new_inputs_are_about_a_policy():
    with pytest.raises(ValueError, match="no policy is set"):
        PolicyArguments(vlm_config={"model_type": "qwen3_vl"}, new_inputs=True)
