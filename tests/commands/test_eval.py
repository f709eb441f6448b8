"""Evaluating by the command: seeds, controls, table, figure, videos, bad input. Policies are made up here."""

import csv

import av
import numpy as np
import pytest
from huggingface_hub import ModelCard
from PIL import Image
from tiny_policies import build

from hf_vla.commands.eval import main

# Least squares over 30 seeds: where on the table (x, y in metres) the yellow box is that corner2's default view shows at
# (row, column, 1), to within 5 mm.
TABLE_FROM_PIXEL = np.array([[0.021131, 0.008147, -1.532843], [-0.016985, 0.010073, 1.016818]])


class ButtonPresser:
    """Looks once where the yellow box is, moves the hand up and over it, then down. If it sees no box, it stays."""

    seeds: list = []

    def reset(self, seed=None):
        self.seeds.append(seed)
        self.target = None

    def infer(self, observation):
        hand = observation["state"][0]
        if self.target is None:
            image = np.asarray(observation["image"][0]).astype(int)
            rows, columns = np.nonzero((image[..., 0] > 150) & (image[..., 1] > 100) & (image[..., 2] < 60))
            self.target = TABLE_FROM_PIXEL @ [rows.mean(), columns.mean(), 1] if len(rows) else hand[:2]
            self.presses = len(rows) > 0
        away = self.target - hand[:2]
        lift = 0.0 if not self.presses else -1.0 if np.abs(away).max() < 0.03 else 20 * (0.4 - hand[2])
        return np.tile(np.clip([*20 * away, lift, 1], -1, 1).astype(np.float32), (5, 1))

    def untrained(self, seed):
        return Idle()


class Idle(ButtonPresser):
    def infer(self, observation):
        return np.zeros((5, 4), np.float32)


def load(model, unnorm_key, device):
    """In place of `Policy.from_pretrained`; importable by the command's worker processes."""
    assert (model, unnorm_key, device) == ("somewhere/presser", "key", "cpu")
    return ButtonPresser()


def flags(output, **changes):
    values = {"model": "somewhere/presser", "env": "metaworld", "task": "button-press-topdown", "episodes": 3}
    values |= {"output": output, "unnorm-key": "key", "device": "cpu", "max-steps": 130, **changes}
    return [text for name, value in values.items() for text in (f"--{name}", str(value))]


def read(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_policy_and_controls(tmp_path, capsys):
    ButtonPresser.seeds.clear()
    output = tmp_path / "evaluation"
    main([*flags(output, **{"num-videos": 1}), "--blind"], load=load)
    rows = read(output / "success_summary.csv")
    assert [row["control"] for row in rows] == ["none", "blind", "untrained"]
    assert [row["policy"] for row in rows] == ["presser", "presser (blind)", "presser (untrained)"]
    assert [(row["env"], row["task"], row["episodes"]) for row in rows] == [
        ("metaworld", "button-press-topdown", "3")
    ] * 3
    assert [row["successes"] for row in rows] == ["3", "0", "0"]
    assert float(rows[0]["mean_length"]) < 130 and float(rows[1]["mean_length"]) == 130
    # Recording starts at seed 0, evaluation far from it; policy and objects share the seed.
    assert ButtonPresser.seeds == [10_000, 10_001, 10_002] * 3
    episodes = read(output / "episodes.csv")
    assert [int(row["seed"]) for row in episodes] == ButtonPresser.seeds
    assert [row["success"] for row in episodes] == ["1"] * 3 + ["0"] * 6

    with Image.open(output / "success_summary.png") as figure:
        assert figure.format == "PNG" and min(figure.size) > 300
    assert [path.name for path in (output / "videos").iterdir()] == ["button-press-topdown-seed-10000.mp4"]
    with av.open(output / "videos/button-press-topdown-seed-10000.mp4") as container:
        frames = [frame.to_ndarray(format="rgb24").astype(int) for frame in container.decode(video=0)]
    assert len(frames) == 1 + (int(episodes[0]["length"]) + 1) // 2
    assert np.abs(frames[0] - frames[-1]).mean() > 1  # the arm moved
    assert sorted(path.name for path in output.iterdir()) == [
        "episodes.csv", "evaluation.json", "raw_success.txt", "success_summary", "success_summary.csv",
        "success_summary.png", "videos",
    ]  # fmt: skip
    assert "presser (blind)" in capsys.readouterr().out


def test_yaml_flags_and_several_tasks(tmp_path):
    recipe = tmp_path / "evaluate.yaml"
    recipe.write_text(
        "model: somewhere/presser\nunnorm-key: key\ndevice: cpu\ntask: [button-press-topdown-v3, reach]\n"
        "episodes: 50\nmax_steps: 10\nuntrained-baseline: false\nnum-videos: 0\nname: mine\nwrong_instruction: true\n"
    )
    main([str(recipe), "--episodes", "1", "--seed-start", "77", "--output", str(tmp_path / "out")], load=load)
    rows = read(tmp_path / "out/success_summary.csv")
    assert [(row["policy"], row["task"], row["episodes"]) for row in rows] == [
        ("mine", "button-press-topdown", "1"),
        ("mine", "reach", "1"),
        ("mine (wrong instruction)", "button-press-topdown", "1"),
        ("mine (wrong instruction)", "reach", "1"),
    ]
    assert [row["seed"] for row in read(tmp_path / "out/episodes.csv")] == ["77"] * 4


def test_results_stand_in_the_policys_card(tmp_path):
    folder, built = tmp_path / "mine", build("qwen_gr00t")
    built.model.save_pretrained(folder)
    built.processor.save_pretrained(folder)
    changes = {"model": folder, "task": "reach", "episodes": 2, "max-steps": 3, "num-videos": 0}
    arguments = [*flags(tmp_path / "out", **changes), "--no-untrained-baseline", "--model-card"]
    main(arguments, load=lambda *_: Idle())
    (result,) = ModelCard.load(folder / "README.md").data.eval_results
    assert (result.dataset_name, result.metric_name, result.metric_value) == (
        "metaworld reach",
        "success rate in 2 episodes",
        0,
    )


def test_a_card_needs_a_policys_folder(tmp_path, capsys):
    said = failure(capsys, [*flags(tmp_path / "out"), "--model-card"], load=load)
    assert "somewhere/presser is not the folder of a policy; its card can't be written" in said


def test_a_served_policy_is_asked_by_its_server(tmp_path, capsys):
    arguments = ["--model", "ws://nowhere:1", "--task", "reach", "--output", str(tmp_path / "out"), "--guidance", "2"]
    said = failure(capsys, [*arguments, "--no-untrained-baseline"])
    assert "--ignore-state, --advantage and --guidance to its server" in said


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "button-pres"}, "unknown MetaWorld task 'button-pres'; possible: button-press"),
        ({"env": "libera"}, "unknown environment 'libera'; possible: "),
        ({"episodes": 0}, "episodes is 0"),
        ({"execute-steps": 0}, "execute is 0; give a whole number from 1"),
        ({"execute-steps": 6}, "set execute_steps to 5 at most"),
        ({"chunk-mode": "rtc"}, "invalid choice: 'rtc'"),
        ({"inference-delay": -1}, "inference_delay is -1; give a whole number from 0"),
        (
            {"inference-delay": 3},
            "so it must have 6 actions, but the policy returns 5; set inference_delay to 2 at most",
        ),
        ({"ensemble-alpha": 0.1}, "alpha belongs to the chunk mode adaptive_ensemble, and the mode is open_loop"),
        ({"max-steps": 0}, "max_steps is 0"),
        ({"episode": 1}, "did you mean --episodes"),
        ({"task": ","}, "no tasks are given; name them by --task"),
        ({"suite": "all"}, "unknown suite 'all'; possible: easy, medium, hard, very_hard"),
        ({"as": "newest"}, "invalid choice: 'newest'"),
        ({"camera": "corner,corner5"}, "unknown MetaWorld camera 'corner5'"),
        ({"env": "gymnasium", "camera": "a,b"}, "gymnasium takes one camera, not 2"),
        ({"env-config": '{"views": 1}'}, "metaworld does not take the setting 'views'; possible: view"),
        ({"env-config": "[1]"}, 'is not a JSON object such as {"image_size": 128}'),
    ],
)
def test_bad_input_is_one_line(tmp_path, capsys, changes, message):
    assert message in failure(capsys, flags(tmp_path / "out", **changes), load=load)
    assert not (tmp_path / "out").exists()


def test_a_model_that_is_not_there(tmp_path, capsys):
    arguments = ["--model", tmp_path / "nowhere", "--task", "reach", "--output", tmp_path / "out"]
    assert "nowhere" in failure(capsys, list(map(str, arguments)))
    assert not (tmp_path / "out").exists()


def test_an_earlier_evaluation_is_kept(tmp_path, capsys):
    (tmp_path / "success_summary.csv").write_text("mine")
    assert "holds an evaluation already" in failure(capsys, flags(tmp_path), load=load)
    assert [path.name for path in tmp_path.iterdir()] == ["success_summary.csv"]


def failure(capsys, arguments, **options) -> str:
    """Run the command's main in this process, where it must end with status 2 and one error line."""
    with pytest.raises(SystemExit) as stopped:
        main(arguments, **options)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert stopped.value.code == 2 and len(lines) == 1
    return lines[0]
