"""scripts/run_train.py as a user calls it."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from hf_vla.training_args.arguments import VLATrainingArguments
from hf_vla.training_args.parse import parse_dataclasses
from hf_vla.training_args.recipe import DataArguments, PolicyArguments

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "run_train.py"


def run_train(*arguments) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, arguments)], capture_output=True, text=True, check=False
    )


def test_a_run_can_be_repeated_from_its_own_config(recipe, tmp_path):
    from safetensors.torch import load_file

    result = run_train(recipe, "--max_steps", 2)
    assert result.returncode == 0, result.stderr
    policy = tmp_path / "policy"
    assert {"config.json", "config.yaml", "loss.png", "model.safetensors", "processor_config.json"} <= {
        path.name for path in policy.iterdir()
    }
    assert yaml.safe_load((policy / "config.yaml").read_text())["max_steps"] == 2
    again = run_train(policy / "config.yaml", "--output_dir", tmp_path / "again")
    assert again.returncode == 0, again.stderr
    first, second = (load_file(folder / "model.safetensors") for folder in (policy, tmp_path / "again"))
    assert all((first[name] == second[name]).all() for name in first)
    assert (policy / "config.json").read_text() == (tmp_path / "again" / "config.json").read_text()
    settings = [yaml.safe_load((folder / "config.yaml").read_text()) for folder in (policy, tmp_path / "again")]
    assert {name for name in settings[0] if settings[0][name] != settings[1][name]} == {"output_dir"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{recipe}", "--max_step", "2"], "unknown argument '--max_step'; did you mean --max_steps"),
        (["{recipe}", "--dataset", "nowhere"], "nowhere"),
        (["{recipe}", "--freeze_modules", "nonsense"], "'nonsense' matches no parameter"),
        (["missing.yaml"], "missing.yaml"),
    ],
)
def test_bad_input_is_one_line(recipe, arguments, message):
    result = run_train(*[argument.format(recipe=recipe) for argument in arguments])
    assert result.returncode == 2
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and message in lines[0], result.stderr
    assert "Traceback" not in result.stderr


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
