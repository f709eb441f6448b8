"""The documents' files of a user: a framework, a robot and a simulator, through record, train, eval and serve by `--import`."""

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

DOCS = Path(__file__).resolve().parents[2] / "docs"


def code(document: str, language: str = "python") -> list[str]:
    text = (DOCS / document).read_text(encoding="utf-8").partition("## Use")[0]
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def hf_vla(*arguments, cwd: Path, status: int = 0) -> subprocess.CompletedProcess:
    """Run a command, away from the repository, which alone is on the path."""
    command = [sys.executable, "-m", "hf_vla", *map(str, arguments)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=cwd, env=os.environ | {"HF_VLA_IMPORT": ""}
    )
    assert done.returncode == status, done.stderr
    return done


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The files, a recipe, a recorded dataset."""
    folder = tmp_path_factory.mktemp("user")
    (folder / "my_table.py").write_text("\n".join(code("extending.md")))
    (folder / "query_regression.py").write_text("\n\n".join(code("add_a_framework.md")))
    recipe = yaml.safe_load(code("extending.md", "yaml")[0]) | {
        "import": ["my_table.py", "query_regression.py"],
        "framework": "query_regression",
        "policy_config": {
            "action_horizon": 4,
            "action_hidden_size": 32,
            "num_action_heads": 2,
            "num_action_layers": 1,
        },
        "max_steps": 2,
        "per_device_train_batch_size": 4,
        "use_cpu": True,
        "eval_env": "my_table",
        "eval_tasks": ["red"],
        "eval_env_episodes": 1,
        "eval_strategy": "steps",
        "eval_steps": 2,
    }
    (folder / "my_recipe.yaml").write_text(yaml.safe_dump(recipe))
    record = ["--env", "my_table", "--task", "red", "blue", "--episodes", 2, "--noise", 0.3, "--num-workers", 2]
    hf_vla("record", "--import", "my_table.py", *record, "--output", "datasets/table", cwd=folder)
    return folder


@pytest.fixture(scope="module")
def policy(folder) -> Path:
    hf_vla("train", "my_recipe.yaml", cwd=folder)
    return folder / "outputs" / "table"


@pytest.mark.slow
def test_training(folder, policy):
    """With the simulator while training; the run's own recipe repeats it, code and all."""
    assert json.loads((policy / "config.json").read_text())["model_type"] == "query_regression"
    processor = json.loads((policy / "processor_config.json").read_text())
    assert set(processor["statistics"]) == {"point"}
    assert processor["normalization_modes"]["point"]["action"] == ["min_max", "min_max"]
    rows = [json.loads(line) for line in (policy / "summary.jsonl").read_text().splitlines()]
    assert any(key.startswith("eval_success") for row in rows for key in row), rows
    assert yaml.safe_load((policy / "config.yaml").read_text())["import"] == ["my_table.py", "query_regression.py"]
    hf_vla("train", policy / "config.yaml", "--output_dir", "again", cwd=folder)
    assert (folder / "again" / "model.safetensors").read_bytes() == (policy / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_evaluation_in_processes_of_its_own(folder, policy):
    code = ["--import", "my_table.py", "--import", "query_regression.py"]
    what = ["--model", policy, "--env", "my_table", "--task", "red,blue", "--episodes", 2, "--num-workers", 2]
    hf_vla("eval", *code, *what, "--max-steps", 6, "--num-videos", 1, "--output", "evaluation", cwd=folder)
    with open(folder / "evaluation" / "success_summary.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {(row["env"], row["task"], row["episodes"]) for row in rows} == {
        ("my_table", t, "2") for t in ("red", "blue")
    }
    assert len(list((folder / "evaluation" / "videos").iterdir())) == 2


@pytest.mark.slow
def test_serving(folder, policy):
    import numpy as np

    from hf_vla.serving import PolicyClient

    command = [sys.executable, "-m", "hf_vla", "serve", "--import", "query_regression.py", "--model", str(policy)]
    server = subprocess.Popen(
        [*command, "--host", "127.0.0.1", "--port", "0"], cwd=folder, stderr=subprocess.PIPE, text=True
    )
    try:
        port = int(next(line for line in server.stderr if "serving on" in line).rsplit(":", 1)[1])
        with PolicyClient(f"ws://127.0.0.1:{port}") as client:
            image = np.zeros((64, 64, 3), np.uint8)
            actions = client.infer({"image": [image], "lang": "go to the red square", "state": [[0.5, 0.5]]})
        assert actions.shape == (4, 2) and np.isfinite(actions).all()
    finally:
        server.terminate()
        server.communicate(timeout=60)


@pytest.mark.slow
def test_without_the_import(folder, policy):
    """One line that says what is known."""
    lacking = {
        (
            "eval",
            "--model",
            policy,
            "--env",
            "my_table",
            "--task",
            "red",
            "--output",
            "o",
        ): "unknown environment 'my_table'",
        (
            "train",
            "quickstart",
            "--framework",
            "query_regression",
        ): "unknown framework 'query_regression'; known are qwen_pi_v3",
        (
            "stats",
            "datasets/table",
            "--robot",
            "pint",
        ): "'pint' is not a robot type and not a YAML file; the robot types are",
    }
    for arguments, message in lacking.items():
        errors = [line for line in hf_vla(*arguments, cwd=folder, status=2).stderr.splitlines() if "error: " in line]
        assert len(errors) == 1 and message in errors[0]
