"""`hf-vla quickstart` end to end, as small as it goes: one demonstration, two steps, one episode; and going on after that."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from hf_vla.commands.quickstart import main


def quickstart(output: Path, *flags: str) -> subprocess.CompletedProcess:
    small = ["--tasks", "drawer-open", "--demonstrations", "1", "--episodes", "1", "--max-steps", "6"]
    command = [
        sys.executable,
        "-m",
        "hf_vla",
        "quickstart",
        "--output",
        str(output),
        "--train-steps",
        "2",
        *small,
        *flags,
    ]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_from_demonstrations_to_result_and_never_twice(tmp_path):
    first = quickstart(tmp_path)
    assert first.returncode == 0, first.stderr
    result = json.loads((tmp_path / "result.json").read_text())
    assert set(result) == {
        "episodes", "success", "untrained_success", "blind_success", "minutes", "processor_minutes", "policy",
    }  # fmt: skip
    assert result["episodes"] == 1 and set(result["success"]) == {"drawer-open"}
    # Six steps are too few for anybody to open a drawer, and two steps of training teach nothing.
    assert result["success"] == result["untrained_success"] == result["blind_success"] == {"drawer-open": 0}
    assert (
        result["minutes"] > 0 < result["processor_minutes"]
        and (Path(result["policy"]) / "model.safetensors").is_file()
    )
    assert (tmp_path / "evaluation" / "success_summary.png").is_file()

    again = quickstart(tmp_path)
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("done already") == 3
    assert json.loads((tmp_path / "result.json").read_text()) == result


def test_stages_that_were_interrupted_go_on(tmp_path, monkeypatch):
    """What each stage is called with, first of all and after a training that was killed when it had a checkpoint."""
    called, fails = [], ["train"]

    def run(command, **_):
        stage = next(name for name in ("record", "train", "eval") if name in command)
        called.append(command[command.index(stage) :])
        if stage == "train":
            (tmp_path / "policy" / "checkpoint-500").mkdir(parents=True, exist_ok=True)
        if stage == "eval":
            (tmp_path / "evaluation").mkdir()
            rows = [("none", "libero_object/0", 3), ("wrong instruction", "libero_object/0", 1)]
            lines = [f"libero,{task},{control},{number},4,{number / 4},0.1,0.9" for control, task, number in rows]
            (tmp_path / "evaluation" / "success_summary.csv").write_text(
                "\n".join(["env,task,control,successes,episodes,success_rate,wilson_low,wilson_high", *lines, ""])
            )
        return real([sys.executable, "-c", f"sum(range(10**6)); exit({int(stage in fails)})"])

    real = subprocess.Popen
    monkeypatch.setattr("hf_vla.commands.quickstart.subprocess.Popen", run)
    monkeypatch.setattr("hf_vla.cards.model_card.add_results", lambda *_: None)
    arguments = ["--recipe", "libero_object", "--output", str(tmp_path), "--episodes", "4"]
    with pytest.raises(SystemExit):
        main(arguments)
    stages = json.loads((tmp_path / "stages.json").read_text())
    assert (stages["record"]["done"], stages["train"]["done"]) == (True, False)
    took = stages["train"]["seconds"]
    assert took > 0 < stages["train"]["processor_seconds"]
    fails.clear()
    main(arguments)
    assert json.loads((tmp_path / "stages.json").read_text())["train"]["seconds"] > took  # both attempts
    record, first, second, evaluate = called
    assert first[:2] == second[:2] == ["train", "libero_object"]
    assert "--resume_from_checkpoint" not in first and second[-2:] == ["--resume_from_checkpoint", "true"]
    recording, evaluating = (yaml.safe_load(Path(command[1]).read_text()) for command in (record, evaluate))
    assert recording["env_config"]["targets"] == "any" and recording["suite"] == evaluating["suite"]
    assert evaluating["episodes"] == 4 and evaluating["wrong_instruction"] is True
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["success"] == {"libero_object/0": 3} and result["episodes"] == 4
    assert result["wrong_instruction_success"] == {"libero_object/0": 1}


@pytest.mark.parametrize(("batch", "processes", "each"), [(4, 2, "2"), (3, 1, None)])
def test_two_processes_share_the_batch_if_they_can(tmp_path, monkeypatch, batch, processes, each):
    """What is trained on two cores has the batch of the recipe, an odd one too."""
    called = []

    def run(command, **_):
        called.append(command)
        return real([sys.executable, "-c", f"exit({int('train' in command)})"])

    real = subprocess.Popen
    monkeypatch.setattr("hf_vla.commands.quickstart.subprocess.Popen", run)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    monkeypatch.setattr("torch.accelerator.is_available", lambda: False)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"record: {{env: toy}}\neval: {{env: toy}}\nper_device_train_batch_size: {batch}\n")
    with pytest.raises(SystemExit):
        main(["--recipe", str(recipe), "--output", str(tmp_path / "out")])
    train = called[-1]
    assert (f"--nproc_per_node={processes}" in train) == (processes > 1) == ("torch.distributed.run" in train)
    given = dict(zip(train, train[1:], strict=False))
    assert given.get("--per_device_train_batch_size") == each


def test_stages_of_an_earlier_version(tmp_path, capsys):
    (tmp_path / "stages.json").write_text('{"record": 12.5}')
    with pytest.raises(SystemExit):
        main(["--output", str(tmp_path)])
    assert "stages.json is of an earlier version of hf-vla quickstart" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--tasks", "open-the-fridge"], "open-the-fridge"),
        (["--episodess", "3"], "did you mean --episodes"),
        (["--recipe", "libero"], "the recipe libero does not say what to record and how to evaluate"),
        (["--recipe", "quickstat"], "did you mean quickstart"),
    ],
)
def test_bad_input_stops_with_one_line(tmp_path, flags, message, capfd):
    with pytest.raises(SystemExit) as stopped:
        main(["--output", str(tmp_path / "out"), *flags])
    errors = capfd.readouterr().err  # of the stage that fails, too, which is a process
    assert stopped.value.code == 2 and message in errors and "Traceback" not in errors
