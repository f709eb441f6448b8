"""Labels by a value function: a toy whose states tell how far the goal is, and a policy trained on its own experience."""

import json
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import tiny_policies
import torch
import yaml
from PIL import Image
from transformers import AutoModel, AutoProcessor

from hf_vla import Policy
from hf_vla.commands.label import main as label_command
from hf_vla.commands.train import main as train
from hf_vla.data import LeRobotDataset, LeRobotWriter
from hf_vla.modeling.critic import mean_states
from hf_vla.training.value_labels import (
    LabelSettings,
    _Episodes,
    assign_folds,
    fit_values,
    label,
    rank_correlation,
    read_states,
)

QUICK = LabelSettings(lookahead=3, folds=3, epochs=40, batch_size=32, learning_rate=3e-3)


def write(root, episodes, source="policy", size=32):
    """Episodes on a line: from `start` to 0, by 1 a step; some turn around at `turn`, and fail.

    The state is the place; failing ones have a second dimension of 1 from where they turn.
    """
    features = {
        "observation.images.front": {"dtype": "video", "shape": (size, size, 3)},
        "observation.state": {"dtype": "float32", "shape": (2,), "names": ["place", "lost"]},
        "action": {"dtype": "float32", "shape": (2,), "names": ["move", "other"]},
        "next.success": {"dtype": "bool", "shape": (1,)},
    }
    rng = np.random.default_rng(0)
    with LeRobotWriter(root, 10, features, "toy_arm") as writer:
        for start, turn in episodes:
            place, lost, length = float(start), 0.0, start if turn is None else 12
            for step in range(length):
                if turn is not None and step >= turn:
                    lost = 1.0
                move = 1.0 if lost else -1.0
                writer.add_frame(
                    {
                        "observation.images.front": rng.integers(0, 255, (size, size, 3), dtype=np.uint8),
                        "observation.state": np.array([place, lost], np.float32),
                        "action": np.array([move, rng.normal()], np.float32),
                        "next.success": turn is None and step == length - 1,
                    }
                )
                place += move
            writer.save_episode("walk home", {"success": turn is None, "source": source})
    return root


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("experience")
    write(folder / "demonstrations", [(6, None), (8, None), (10, None)], "demonstration")
    episodes = [(start, turn) for start in (5, 6, 7, 8, 9, 10) for turn in (None, 3)]
    write(folder / "rollouts", episodes)
    return folder


@pytest.fixture(scope="module")
def policy(data, recipe_in, tmp_path_factory):
    folder = tmp_path_factory.mktemp("policy")
    recipe = yaml.safe_load(recipe_in(folder).read_text())
    recipe |= {"dataset": [str(data / "demonstrations")], "max_steps": 2, "framework": "qwen_gr00t"}
    recipe["policy_config"] |= {"num_action_layers": 2, "output_dim": 16}
    (folder / "own.yaml").write_text(yaml.safe_dump(recipe))
    train([str(folder / "own.yaml")])
    return folder / "policy"


def test_a_toy_is_labelled_as_it_should_be(data, policy):
    datasets = [LeRobotDataset(data / name, 4) for name in ("demonstrations", "rollouts")]
    weights = {path: path.read_bytes() for path in policy.iterdir() if path.is_file()}
    (report,) = label(Policy.from_pretrained(policy, device="cpu"), datasets, "toy", QUICK, progress=False)
    assert weights == {path: path.read_bytes() for path in policy.iterdir() if path.is_file()}
    assert (report.task, report.solved, report.failed) == ("walk home", 9, 6)
    assert report.correlation > 0.8
    assert report.value_solved > report.value_failed + 0.2
    assert report.positive["demonstration"] == 1.0 and abs(report.positive["policy"] - 0.4) < 0.02
    table = pq.read_table(data / "rollouts/meta/advantages_toy.parquet").to_pandas()
    rows = table.groupby("episode_index")["frame_index"]
    assert (rows.max() + 1).tolist() == datasets[1].metadata.length.tolist()
    # Where a failing episode is about to turn, three steps later all is lost: worse than was to be expected.
    failing = table[(table.episode_index % 2 == 1) & (table.frame_index.isin([0, 1, 2]))]
    solved = table[(table.episode_index % 2 == 0) & (table.frame_index.isin([0, 1]))]
    assert failing.advantage.mean() < solved.advantage.mean() - 0.2
    assert failing.positive.mean() < 0.35
    returned = pq.read_table(data / "rollouts/meta/returns_toy.parquet").to_pandas()
    first = returned[returned.episode_index == 0]  # 5 frames, the longest has 12
    assert np.allclose(first["return"], -np.array([4, 3, 2, 1, 0]) / 12)
    assert (returned[returned.episode_index == 1]["return"] == -1).all()


def test_training_on_advantages_from_the_command_line(data, policy, tmp_path, capsys):
    datasets = [str(data / name) for name in ("demonstrations", "rollouts")]
    quick = ["--folds", "3", "--epochs", "2", "--lookahead", "3", "--device", "cpu"]
    label_command([*datasets, "--model", str(policy), "--tag", "first", *quick])
    said = capsys.readouterr().out
    assert "walk home: 9 episodes solved, 6 failed" in said and "100 % of demonstration, 40 % of policy" in said
    pictures = [data / name / "meta" / "values_first.png" for name in ("demonstrations", "rollouts")]
    assert said.splitlines()[-1] == f"pictures: {pictures[0]}, {pictures[1]}"
    assert all(Image.open(picture).width > 500 for picture in pictures)
    common = [
        *("--max_steps", "2", "--learning_rate", "1e-3", "--per_device_train_batch_size", "8"),
        "--use_cpu",
        "true",
    ]
    common += ["--report_to", "none", "--save_strategy", "no", "--disable_tqdm", "true", "--seed", "0"]
    common += ["--policy", str(policy), "--dataset", *datasets]
    train([*common, "--advantage", "first", "--advantage_dropout", "0.5", "--output_dir", str(tmp_path / "told")])
    told = Policy.from_pretrained(tmp_path / "told", device="cpu")
    assert told.advantage == "positive"
    assert told.processor.advantage_template == "{instruction} Advantage: {advantage}"
    guided = Policy.from_pretrained(tmp_path / "told", device="cpu", guidance=2.0)
    image = np.zeros((32, 32, 3), np.uint8)
    observation = {"image": [image], "lang": "walk home", "state": [5.0, 0.0]}
    assert np.isfinite(guided.infer(observation, seed=0)).all()
    assert "Advantage: positive" in told.predict(observation).prompt
    # A run without advantages makes a policy that is not told any.
    common[common.index("--policy") + 1] = str(tmp_path / "told")
    train([*common, "--output_dir", str(tmp_path / "plain")])
    assert Policy.from_pretrained(tmp_path / "plain", device="cpu").advantage is None
    # Only what was solved.
    train([*common, "--successes_only", "true", "--output_dir", str(tmp_path / "solved")])
    assert "rollouts: " in capsys.readouterr().out
    statistics = AutoProcessor.from_pretrained(tmp_path / "solved").statistics["toy_arm"]
    assert statistics["state"]["max"][1] == 0  # no frame of a failure was read


def test_a_new_tokenizer_spells_advantages_in_few_tokens(data, recipe_in, tmp_path):
    recipe = yaml.safe_load(recipe_in(tmp_path).read_text()) | {
        "dataset": [str(data / "demonstrations")],
        "max_steps": 1,
    }
    lengths, vocabularies = {}, {}
    for name, more in (("told", {"advantage": "positive"}), ("plain", {})):
        (tmp_path / "own.yaml").write_text(yaml.safe_dump(recipe | more | {"output_dir": str(tmp_path / name)}))
        train([str(tmp_path / "own.yaml")])
        tokenizer = AutoProcessor.from_pretrained(tmp_path / name).tokenizer
        lengths[name] = len(tokenizer(" Advantage: positive", add_special_tokens=False)["input_ids"])
        vocabularies[name] = len(tokenizer)
    assert lengths["told"] <= 3 < lengths["plain"]
    assert (
        AutoModel.from_pretrained(tmp_path / "told").config.vlm_config.text_config.vocab_size == vocabularies["told"]
    )


def test_the_states_read_know_nothing_of_the_actions(data):
    policy = tiny_policies.build("qwen_fast")  # whose training batches hold the actions as tokens
    dataset = LeRobotDataset(data / "demonstrations", tiny_policies.HORIZON, unnorm_key="arm", episodes=[0])
    means, _ = read_states(policy, dataset, 4, 0, False)
    item = dataset[1]
    inputs = policy.processor(images=[item["image"]], text=item["lang"], state=item["state"][None], unnorm_key="arm")
    hidden, mask, _ = policy.model.observation_states(**inputs)
    assert len(means) == len(dataset) and torch.allclose(means[1], mean_states(hidden, mask)[0], atol=1e-5)


def test_what_can_not_be_labelled(data, policy, tmp_path):
    loaded = Policy.from_pretrained(policy, device="cpu")
    rollouts = LeRobotDataset(data / "rollouts", 4)
    label(loaded, [rollouts], "once", LabelSettings(folds=2, epochs=1), progress=False)
    with pytest.raises(FileExistsError, match="labels of the tag 'once' already"):
        label(loaded, [rollouts], "once", QUICK, progress=False)
    failures = LeRobotDataset(write(tmp_path / "failures", [(8, 3)] * 4), 4)
    with pytest.raises(ValueError, match="none of the 4 episodes of 'walk home' was solved"):
        label(loaded, [failures], "first", QUICK, progress=False)
    few = LeRobotDataset(write(tmp_path / "few", [(8, None), (8, 3)]), 4)
    with pytest.raises(ValueError, match="there are 2 episodes, and 3 value functions"):
        label(loaded, [few], "first", QUICK, progress=False)
    other = LeRobotDataset(data / "rollouts", 4, unnorm_key="another_arm")
    with pytest.raises(ValueError, match="the statistics key 'another_arm', and the policy was trained on toy_arm"):
        label(loaded, [other], "first", QUICK, progress=False)
    info = json.loads((write(tmp_path / "views", [(8, None), (8, 3)]) / "meta/info.json").read_text())
    columns = {"images": {"wrist": "observation.images.front"}, "state": ["observation.state"], "action": ["action"]}
    assert "observation.images.front" in info["features"]
    views = LeRobotDataset(tmp_path / "views", 4, columns=columns, cameras=["wrist"])
    views.cameras = [*views.cameras, *views.cameras]  # two views of a policy of one
    with pytest.raises(ValueError, match="trained on other inputs than .*views has: its cameras are front"):
        label(loaded, [views], "first", QUICK, progress=False)
    with pytest.raises(ValueError, match="the share must be between 0 and 1"):
        LabelSettings(positive_share=1.0)
    with pytest.raises(ValueError, match="folds is 1"):
        LabelSettings(folds=1)


def test_states_of_some_datasets_only():
    read = [
        _Episodes(SimpleNamespace(name=name), [], torch.zeros(2, 4), states)
        for name, states in (("seen", torch.zeros(2, 1, 3)), ("blind", None))
    ]
    for one, other in (read, read[::-1]):
        with pytest.raises(ValueError, match="seen has the robot's state and blind does not"):
            fit_values([one, other], [], np.zeros(4), QUICK)


def test_episodes_are_spread_over_the_folds():
    from hf_vla.data.outcomes import Outcome

    outcomes = [
        Outcome(success, np.zeros(2), np.full(2, "policy", dtype=object), task)
        for task in ("a", "b")
        for success in [True] * 6 + [False] * 3
    ]
    parts = assign_folds(outcomes, 3, seed=0)
    for task in ("a", "b"):
        for success, each in ((True, 2), (False, 1)):
            rows = [part for part, o in zip(parts, outcomes, strict=True) if (o.task, o.success) == (task, success)]
            assert np.bincount(rows, minlength=3).tolist() == [each] * 3


def test_rank_correlation():
    assert rank_correlation([1, 2, 3], [10, 20, 30]) == pytest.approx(1)
    assert rank_correlation([1, 2, 3, 4], [4, 3, 1, 2]) == pytest.approx(-0.8)
    assert rank_correlation([1, 2, 2, 3], [1, 2, 2, 3]) == pytest.approx(1)
    assert rank_correlation([1, 1, 1], [1, 2, 3]) is None
