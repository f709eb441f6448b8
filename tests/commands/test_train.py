"""`hf-vla train` as a user calls it."""

import subprocess
import sys

import pytest
import yaml

from hf_vla.commands.dataclass_parser import parse_dataclasses
from hf_vla.commands.train import main
from hf_vla.training.run_log import read_summary, write_run_config
from hf_vla.training_args.arguments import VLATrainingArguments
from hf_vla.training_args.evaluation_arguments import EvaluationArguments
from hf_vla.training_args.recipe import DataArguments, PolicyArguments


def run_train(*arguments) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "hf_vla", "train", *map(str, arguments)], capture_output=True, text=True, check=False
    )


@pytest.mark.slow
def test_a_run_can_be_repeated_from_its_own_config(recipe, tmp_path):
    """Of a recipe with a base, changed by flags: the same losses, evaluations and weights."""
    from safetensors.torch import load_file

    top = tmp_path / "top.yaml"
    top.write_text("base: recipe.yaml\nlr_scheduler_type: cosine_with_min_lr\nlr_scheduler_kwargs: {min_lr: 1.e-5}\n")
    flags = ["--max_steps", 2, "--eval_episodes", 1, "--eval_strategy", "steps", "--eval_steps", 1, "--seed", 3]
    flags += [
        "--module_learning_rates",
        '{"^action_head": 2e-3}',
        "--freeze_modules",
        r"^vlm\.model\.visual",
        "--weight_decay",
        0,
    ]
    result = run_train(top, *flags)
    assert result.returncode == 0, result.stderr
    policy = tmp_path / "policy"
    assert {
        "config.json",
        "config.yaml",
        "loss.png",
        "model.safetensors",
        "processor_config.json",
        "summary.jsonl",
    } <= {path.name for path in policy.iterdir()}
    assert yaml.safe_load((policy / "config.yaml").read_text())["max_steps"] == 2
    again = run_train(policy / "config.yaml", "--output_dir", tmp_path / "again")
    assert again.returncode == 0, again.stderr
    first, second = (load_file(folder / "model.safetensors") for folder in (policy, tmp_path / "again"))
    assert all((first[name] == second[name]).all() for name in first)
    assert (policy / "config.json").read_text() == (tmp_path / "again" / "config.json").read_text()
    settings = [yaml.safe_load((folder / "config.yaml").read_text()) for folder in (policy, tmp_path / "again")]
    assert {name for name in settings[0] if settings[0][name] != settings[1][name]} == {"output_dir"}
    rows = [read_summary(folder / "summary.jsonl") for folder in (policy, tmp_path / "again")]
    for ours, theirs in zip(*rows, strict=True):
        assert {n: v for n, v in ours.items() if is_result(n)} == {n: v for n, v in theirs.items() if is_result(n)}
    assert sum("loss" in row for row in rows[0]) == sum("eval_action_error" in row for row in rows[0]) == 2


def is_result(name: str) -> bool:
    """Not a time."""
    return not any(part in name for part in ("time", "per_second", "memory"))


def test_resuming_is_not_part_of_what_is_repeated(tmp_path):
    given = {"max_steps": 4, "resume_from_checkpoint": "somewhere", "module_learning_rates": {"a": 1e-5}}
    file = write_run_config(tmp_path, [EvaluationArguments(eval_episodes=0.25)], given)
    written = yaml.safe_load(file.read_text())
    assert written["eval_episodes"] == 0.25 and "resume_from_checkpoint" not in written
    assert (written["max_steps"], written["module_learning_rates"]) == (4, {"a": 1e-5})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{recipe}", "--max_step", "2"], "unknown argument '--max_step'; did you mean --max_steps"),
        (["{recipe}", "--dataset", "nowhere"], "nowhere"),
        (["{recipe}", "--freeze_modules", "nonsense"], "'nonsense' matches no parameter"),
        (["missing.yaml"], "missing.yaml"),
    ],
)
def test_bad_input_is_one_line(recipe, arguments, message, capsys):
    assert message in failure(capsys, [argument.format(recipe=recipe) for argument in arguments])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--eval_episodes", "2", "--eval_strategy", "steps"], "leaves none to train on"),
        (["--eval_episodes", "1"], "eval_strategy is 'no'"),
        (["--eval_env", "metaworl", "--eval_tasks", "x", "--eval_strategy", "steps"], "possible: metaworld"),
        (["--report_to", "trackio"], "pip install trackio"),
    ],
)
def test_what_evaluation_and_reports_need_is_known_before_training(recipe, flags, message, capsys):
    assert message in failure(capsys, [str(recipe), *flags])


def failure(capsys, arguments) -> str:
    """Run the command's main in this process, where it must end with status 2 and one error line."""
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert stopped.value.code == 2 and len(lines) == 1
    return lines[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"framework": "qwen_pi_v4"}, "known are qwen_pi_v3"),
        ({"vlm_config": None}, "set one of policy, base_vlm and vlm_config"),
        ({"dataset": None}, "set dataset"),
        ({"mixture": "bridge_rt_1"}, "set dataset (one or more LeRobot datasets) or mixture"),
        ({"policy": "somewhere"}, "set are: policy, vlm_config"),
        ({"policy": "somewhere", "vlm_config": None}, "policy_config describe a new policy"),
        ({"image_size": 96}, "give width and height"),
        ({"action_mode": "q98"}, "known are q99"),
        ({"augmentation": {"crops": 0.9}}, "augmentation has no crops"),
        ({"learning_rate": [1, 2]}, "possible: one value"),
        ({"seed": {"a": 1}}, "invalid int value"),
        ({"module_learning_rates": ["a"]}, "give a mapping"),
        ({"no_such_key": 1}, "unknown key 'no_such_key'"),
        ({"base": "recipe.yaml"}, "its own base"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_read(recipe, change, message, capsys):
    recipe.write_text(yaml.safe_dump({**yaml.safe_load(recipe.read_text()), **change}))
    types = (PolicyArguments, DataArguments, VLATrainingArguments)
    with pytest.raises((ValueError, SystemExit)) as raised:
        parse_dataclasses(types, [str(recipe)])
    assert message in str(raised.value) + capsys.readouterr().err


def test_one_value_is_a_list_of_one(recipe):
    content = yaml.safe_load(recipe.read_text())
    recipe.write_text(yaml.safe_dump({**content, "dataset": content["dataset"][0], "freeze_modules": "^vlm"}))
    (_, data, args), _ = parse_dataclasses((PolicyArguments, DataArguments, VLATrainingArguments), [str(recipe)])
    assert data.dataset == content["dataset"] and args.freeze_modules == ["^vlm"]


def test_flags_win_over_the_file_and_the_file_over_its_base(recipe, tmp_path):
    top = tmp_path / "top.yaml"
    top.write_text("base: recipe.yaml\nlearning_rate: 2e-3\nseed: 3\n")
    types = (PolicyArguments, DataArguments, VLATrainingArguments)
    (_, _, args), given = parse_dataclasses(types, [str(top), "--seed", "5"])
    assert (args.learning_rate, args.seed, args.max_steps) == (2e-3, 5, 6)
    assert (given["learning_rate"], given["seed"], given["max_steps"]) == (2e-3, 5, 6)
