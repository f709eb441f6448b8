"""`hf-vla quickstart` end to end, as small as it goes: one demonstration, two steps, one episode; and going on after that."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

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
    assert set(result) == {"episodes", "success", "untrained_success", "blind_success", "minutes", "policy"}
    assert result["episodes"] == 1 and set(result["success"]) == {"drawer-open"}
    # Six steps are too few for anybody to open a drawer, and two steps of training teach nothing.
    assert result["success"] == result["untrained_success"] == result["blind_success"] == {"drawer-open": 0}
    assert result["minutes"] > 0 and (Path(result["policy"]) / "model.safetensors").is_file()
    assert (tmp_path / "evaluation" / "success_summary.png").is_file()

    again = quickstart(tmp_path)
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("done already") == 3
    assert json.loads((tmp_path / "result.json").read_text()) == result


@pytest.mark.parametrize(
    ("flags", "message"),
    [(["--tasks", "open-the-fridge"], "open-the-fridge"), (["--episodess", "3"], "did you mean --episodes")],
)
def test_bad_input_stops_with_one_line(tmp_path, flags, message, capfd):
    with pytest.raises(SystemExit) as stopped:
        main(["--output", str(tmp_path / "out"), *flags])
    errors = capfd.readouterr().err  # of the stage that fails, too, which is a process
    assert stopped.value.code == 2 and message in errors and "Traceback" not in errors
