"""scripts/run_train.py as a user calls it."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{recipe}", "--max_step", "2"], "unknown argument '--max_step'; did you mean max_steps"),
        (["{recipe}", "--dataset", "nowhere"], "nowhere"),
        (["{recipe}", "--freeze_modules", "nonsense"], "'nonsense' matches no parameter"),
        (["{recipe}", "--framework", "qwen_pi_v4"], "known are qwen_pi_v3"),
        (["missing.yaml"], "missing.yaml"),
        (["--output_dir", "x"], "set one of policy, base_vlm and vlm_config"),
    ],
)
def test_bad_input_is_one_line(recipe, arguments, message):
    result = run_train(*[argument.format(recipe=recipe) for argument in arguments])
    assert result.returncode == 2
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and message in lines[0], result.stderr
    assert "Traceback" not in result.stderr
