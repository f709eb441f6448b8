"""`hf-vla stats`: the numbers, where they go, and bad input."""

import json
import re

import numpy as np
import pytest

from hf_vla.commands.stats import main
from hf_vla.data import LeRobotDataset, LeRobotWriter


@pytest.fixture
def numbers(tmp_path):
    """A dataset without cameras, and its actions."""
    rng = np.random.default_rng(0)
    features = {name: {"dtype": "float32", "shape": (3,)} for name in ("action", "observation.state")}
    written = []
    with LeRobotWriter(tmp_path / "arm", 10, features, "arm") as writer:
        for length in (20, 30):
            for _ in range(length):
                action, state = rng.normal(size=(2, 3)).astype(np.float32)
                writer.add_frame({"action": action, "observation.state": state})
                written.append(action)
            writer.save_episode("go")
    return tmp_path / "arm", np.array(written, dtype=np.float64)


def test_prints_a_table(numbers, capsys):
    root, actions = numbers
    main([str(root)])
    printed = capsys.readouterr().out
    assert "arm: 50 frames, 2 episodes" in printed
    lines = printed.splitlines()
    assert lines[1].split() == ["action", "mean", "std", "min", "max", "q01", "q99"]
    shown = [float(value) for value in lines[3].split()]
    expected = [
        actions.mean(0),
        actions.std(0),
        actions.min(0),
        actions.max(0),
        *np.quantile(actions, [0.01, 0.99], 0),
    ]
    np.testing.assert_allclose(shown, [1, *(values[1] for values in expected)], rtol=1e-3)
    assert (root / ".hf_vla").is_dir()  # training finds them there


def test_writes_what_the_datasets_have(numbers, tmp_path):
    root, _ = numbers
    output = tmp_path / "new" / "statistics.json"
    config = tmp_path / "stats.yaml"
    config.write_text(f"dataset: [{root}]\naction_mode: relative\nabsolute_dims: [-1]\naction_horizon: 4\n")
    main([str(config), "--key", "mine", "--output", str(output)])
    dataset = LeRobotDataset(root, 4, unnorm_key="mine", action_mode="relative", absolute_dims=[-1])
    assert json.loads(output.read_text()) == {"mine": dataset.statistics}
    assert dataset.statistics["action"] != LeRobotDataset(root, 4).statistics["action"]
    main(["--dataset", str(root), str(root), "--output", str(output)])
    pooled = json.loads(output.read_text())["arm"]
    assert pooled["num_transitions"] == 100
    assert pooled["action"]["min"] == LeRobotDataset(root, 4).statistics["action"]["min"]


def test_bad_input(numbers, tmp_path, capsys):
    root, _ = numbers
    bad = [[], [str(tmp_path / "nowhere")], [str(root), "--action-mode", "fast"], [str(root), "--episodes", "7"]]
    for arguments in bad:
        with pytest.raises(SystemExit) as exit:
            main(arguments)
        assert exit.value.code == 2
        assert re.fullmatch(r"error: .*\n", capsys.readouterr().err)
