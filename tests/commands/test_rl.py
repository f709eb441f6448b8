"""`hf-vla rl`, from the command line to the table, in a toy simulator; killed and resumed."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.torch import load_file
from tiny_policies import build

from hf_vla.commands.report import main as report
from hf_vla.commands.rl import main
from hf_vla.data import LeRobotWriter
from hf_vla.plugins import USER_CODE
from hf_vla.training.rl_run import LearningStarts, _load
from hf_vla.training.run_log import read_summary
from hf_vla.training_args.arguments import VLATrainingArguments
from hf_vla.training_args.peft import PeftArguments
from hf_vla.training_args.ppo_arguments import FIRST_LEARNING_SEED, CollectionArguments
from hf_vla.training_args.recipe import PolicyArguments

PLUGIN = """
import os, signal
import hf_vla, toy

class Bandit(toy.ToyBandit):
    def __init__(self, task="near", max_steps=3, kill=None):
        super().__init__(task, max_steps)
        self.kill = kill

    def step(self, action):
        if self.kill and os.path.isdir(self.kill) and not os.path.exists(self.kill + ".killed"):
            open(self.kill + ".killed", "w").close()
            os.kill(os.getppid(), signal.SIGKILL)
        return super().step(action)

class Numbered(toy.ToyBandit):
    def __init__(self, task="near", **settings):
        super().__init__(**settings)
        self.task, self.num_episodes = task, 3 if task == "near" else 2

    @classmethod
    def task_names(cls):
        return ["near", "far"]

hf_vla.register_environment("bandit", Bandit)
hf_vla.register_environment("numbered", Numbered)
"""


@pytest.fixture(scope="module")
def plugin(tmp_path_factory):
    file = tmp_path_factory.mktemp("plugin") / "bandits.py"
    file.write_text(PLUGIN)
    return str(file)


@pytest.fixture
def arguments(tmp_path, plugin, monkeypatch):
    """A recipe for a toy simulator and a tiny policy."""
    monkeypatch.setenv(USER_CODE, "")
    build("qwen_pi_v3").save_pretrained(tmp_path / "policy")
    recipe = {
        "policy": str(tmp_path / "policy"), "env": "bandit", "tasks": ["near"], "reward": "dense", "execute_steps": 3,
        "iterations": 2, "episodes_per_iteration": 8, "epochs": 1, "minibatches": 2, "learning_rate": 1e-3,
        "freeze_modules": ["^vlm"], "num_workers": 1, "environments_per_worker": 4, "save_strategy": "epoch",
        "eval_strategy": "epoch", "evaluate_every": 2, "validation_episodes": 2, "test_episodes": 2, "test_seed": 50,
        "use_cpu": True, "report_to": "none", "disable_tqdm": True,
    }  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return [str(tmp_path / "recipe.yaml"), "--import", plugin, "--output_dir", str(tmp_path / "out")]


def test_from_the_policy_to_the_table(arguments, tmp_path, capsys):
    main(arguments)
    out, told = tmp_path / "out", capsys.readouterr().out
    assert "24 episodes, 72 environment steps" in told  # with those of the critic's warm-up
    for name in ("before", "before (untrained)", "after", "after (blind)"):
        assert any(line.split("  ")[0] == name and line.endswith("of 2") for line in told.splitlines()), told
    assert re.search(
        r"^difference [+-]\d\.\d\d, 95 % interval [+-]\d\.\d\d to [+-]\d\.\d\d, p = ", told, re.MULTILINE
    ), told
    pictures = [str(out / name) for name in ("learning.png", "evaluation_before/videos", "evaluation/videos")]
    assert told.splitlines()[-1] == f"pictures: {', '.join(pictures)}; all on one page: hf-vla report {out}"
    assert all(len(list((out / name / "videos").glob("*.mp4"))) == 2 for name in ("evaluation", "evaluation_before"))
    report([str(out)])
    page, said = (out / "report.html").read_text(), capsys.readouterr().out
    assert "learned by acting" in page and "24 episodes, " in page and "(hf-vla rl " in page
    assert page.count("data:video/mp4") == 4 and "missing: samples per second" not in said
    rows = [row for row in read_summary(out / "summary.jsonl") if "rollout/success_once" in row]
    assert [row["epoch"] for row in rows] == [1, 2]
    assert all(row["samples_per_second"] > 0 for row in rows)  # chunks, in the update alone
    assert not any("train_samples_per_second" in row for row in read_summary(out / "summary.jsonl"))
    for name in (
        "config.json",
        "model.safetensors",
        "critic.safetensors",
        "learning.png",
        "evaluation/success_summary.csv",
    ):
        assert (out / name).is_file(), name
    assert yaml.safe_load((out / "config.yaml").read_text())["iterations"] == 2
    with pytest.raises(SystemExit):  # the folder of another run
        main(arguments)
    assert "continue from there with --resume_from_checkpoint true" in capsys.readouterr().err
    # The whole run again: the evaluation of the policy that it starts from is made after the earlier run is removed.
    short = ["--iterations", "1", "--evaluate_every", "1", "--critic_warmup_iterations", "0", "--controls", "false"]
    main([*arguments, "--overwrite_output_dir", "true", *short])
    told = capsys.readouterr().out
    assert "difference" in told and "(untrained)" not in told


def test_an_adapter_learns_and_its_average_is_kept(arguments, tmp_path):
    pytest.importorskip("peft")
    recipe = yaml.safe_load((tmp_path / "recipe.yaml").read_text())
    recipe |= {"freeze_modules": None, "iterations": 1, "eval_strategy": "no", "test_episodes": 0, "ema_decay": 0.5}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe | {"use_peft": True, "lora_dropout": 0.1}))
    main(arguments)
    (row,) = [row for row in read_summary(tmp_path / "out" / "summary.jsonl") if "loss" in row]
    assert row["actor/first_log_ratio"] < 1e-4 and row["actor/collection_log_ratio"] < 1e-4
    adapter, averaged = (
        load_file(tmp_path / "out" / name) for name in ("adapter_model.safetensors", "checkpoint-2/ema.safetensors")
    )
    assert any(x.any() for name, x in adapter.items() if "lora_B" in name) and averaged
    assert (tmp_path / "out" / "critic.safetensors").is_file()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--tasks", "far"], "unknown task 'far'; possible: near"),
        (["--imitation_weight", "0.1"], "imitation_weight weighs the loss on demonstrations"),
        (["--policy", "nowhere/at/all"], "nowhere/at/all"),
        (["--eval_strategy", "steps"], "eval_strategy is 'steps'; possible: no, epoch"),
        (["--per_device_train_batch_size", "4"], "leave out per_device_train_batch_size: a step's chunks follow from"),
        (["--env", "numbered", "--tasks", "near,far"], "different numbers of episodes (near 3, far 2)"),
        (
            ["--env", "numbered", "--validation_episodes", "4"],
            "validation_episodes is 4, and each task has 3 episodes",
        ),
        (["--collectors", "ws://127.0.0.1:1"], "there is no server of simulators at ws://127.0.0.1:1"),
    ],
)
def test_mistakes_are_one_line_before_anything_is_run(arguments, flags, message, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main([*arguments, *flags])
    assert not (tmp_path / "out" / "evaluation_before").exists()
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(error) == 1 and message in error[0]


@pytest.mark.parametrize(("number", "first"), [(None, FIRST_LEARNING_SEED), (3, 0)])
def test_a_run_is_known_by_the_seed_that_it_starts_from(number, first):
    starts = LearningStarts(CollectionArguments(env="bandit", tasks=["near"]), {}, number)
    assert starts[0]["seed"] == starts.identity["first_seed"] == first


def test_demonstrations_beyond_the_statistics_are_told(arguments, tmp_path, caplog):
    features = {
        "observation.images.front": {"dtype": "video", "shape": (64, 64, 3)},
        "observation.state": {"dtype": "float32", "shape": (2,)},
        "action": {"dtype": "float32", "shape": (2,)},
    }
    with LeRobotWriter(tmp_path / "data", 10, features, "arm") as writer:
        for step in range(4):
            image, far = np.zeros((64, 64, 3), np.uint8), np.array([2.5, 3.0 + 10 * step], np.float32)
            writer.add_frame({"observation.images.front": image, "observation.state": far, "action": far})
        writer.save_episode("open the drawer")
    args = VLATrainingArguments(output_dir=str(tmp_path / "out"), use_cpu=True, report_to="none")
    _load(PolicyArguments(policy=str(tmp_path / "policy")), PeftArguments(), [str(tmp_path / "data")], args)
    assert "actions of 'arm' go beyond the range in which" in caplog.text


@pytest.mark.slow
def test_kill_9_within_an_iteration(arguments, tmp_path):
    """Killed while it collects its second iteration, a run goes on at that iteration's start, to the same policy."""
    arguments += ["--test_episodes", "0", "--eval_strategy", "no"]
    main([*arguments, "--output_dir", str(tmp_path / "whole")])
    config = f'{{"kill": "{tmp_path / "out" / "checkpoint-2"}"}}'
    command = [sys.executable, "-m", "hf_vla", "rl", *arguments, "--env_config", config]
    paths = os.pathsep.join([str(Path(__file__).resolve().parents[1]), os.environ.get("PYTHONPATH", "")])
    killed = subprocess.run(command, capture_output=True, env=os.environ | {"PYTHONPATH": paths}, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
    assert not (tmp_path / "out" / "config.json").exists() and (tmp_path / "out" / "checkpoint-2").is_dir()
    main([*arguments, "--env_config", config, "--resume_from_checkpoint", "true"])
    whole, resumed = (read_summary(tmp_path / name / "summary.jsonl") for name in ("whole", "out"))
    returns = [[row["rollout/return"] for row in rows if "loss" in row] for rows in (whole, resumed)]
    assert len(returns[0]) == 2 and returns[0] == pytest.approx(returns[1], rel=1e-5)
    expected, found = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "out"))
    assert all(found[name].allclose(x, atol=1e-6) for name, x in expected.items())
