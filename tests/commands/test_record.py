"""Recording demonstrations by the command: the dataset, its independence of workers, bad input."""

import json
import os
import subprocess
import sys

import av
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from PIL import Image

from hf_vla.commands.record import main
from hf_vla.evaluation import environments
from hf_vla.evaluation.demonstrations import collect_demonstrations, record_dataset, record_demonstration
from hf_vla.evaluation.environments import Environment, StepResult, make_environment

TASKS = ["handle-press", "coffee-button"]  # the experts' shortest
CAMERA = "observation.images.corner2"


def run(*arguments) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "hf_vla", "record", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    """The same recording made by one and by two processes.

    Of 64 x 64 pixels, as x264 does not always encode the same frames alike that are less than 4 blocks of 16 wide: of 32 x 32, three of
    fourteen processes that had MuJoCo loaded wrote other bytes.
    """
    folder = tmp_path_factory.mktemp("recordings")
    common = ["--env", "metaworld", "--task", ",".join(TASKS), "--episodes", 2, "--seed-offset", 5, "--noise", 0.1]
    for workers in (1, 2):
        done = run(*common, "--image-size", 64, "--output", folder / str(workers), "--num-workers", workers)
        assert done.returncode == 0, done.stderr
        assert "coffee-button: 2 episodes recorded, 0 dropped" in done.stdout
        assert "4/4" in done.stderr  # the progress bar
    return folder


@pytest.mark.slow
def test_the_number_of_workers_changes_no_byte(datasets):
    files = sorted(
        path.relative_to(datasets / "1")
        for path in (datasets / "1").rglob("*")
        if path.is_file() and path.name != "README.md"
    )  # titled by its folder
    assert {"data/chunk-000/file-000.parquet", "meta/stats.json", "meta/tasks.parquet"} <= {
        str(file) for file in files
    }
    for file in files:
        assert (datasets / "1" / file).read_bytes() == (datasets / "2" / file).read_bytes(), file


@pytest.mark.slow
def test_the_dataset_holds_what_was_recorded(datasets):
    root = datasets / "1"
    info = json.loads((root / "meta/info.json").read_text())
    assert (info["total_episodes"], info["total_tasks"], info["fps"]) == (4, 2, 80)
    environment = info["environment"]
    assert (environment["name"], environment["noise"]) == ("metaworld", 0.1)
    assert environment["tasks"]["coffee-button"] == {"seeds": [5, 6], "failed_seeds": []}
    assert environment["settings"]["image_size"] == 64 and environment["settings"]["camera"] == "corner2"
    tasks = pd.read_parquet(root / "meta/tasks.parquet")["task_index"].to_dict()
    assert tasks == {"press the handle down": 0, "press the button of the coffee machine": 1}

    table = pq.read_table(root / "data/chunk-000/file-000.parquet")
    episodes = pd.read_parquet(root / "meta/episodes/chunk-000/file-000.parquet")
    with av.open(root / f"videos/{CAMERA}/chunk-000/file-000.mp4") as container:
        frames = [frame.to_ndarray(format="rgb24").astype(int) for frame in container.decode(video=0)]
    assert len(frames) == len(table) == info["total_frames"]

    recorded = list(collect_demonstrations("metaworld", TASKS, 2, first_seed=5, noise=0.1, image_size=64))
    for (_, _, demonstration), row in zip(recorded, episodes.itertuples(), strict=True):
        part = slice(row.dataset_from_index, row.dataset_to_index)
        assert row.length == len(demonstration.actions)
        assert np.array_equal(np.stack(table["action"].to_numpy()[part]), demonstration.actions)
        assert np.array_equal(np.stack(table["observation.state"].to_numpy()[part]), demonstration.states)
        for index in (0, -1):
            difference = np.abs(frames[part][index] - demonstration.images[0][index])
            assert difference.mean() < 8  # the codec's; frames of other episodes are off by more
        success = table["next.success"].to_pylist()[part]
        assert success.index(True) == row.length - 6  # five steps after the first success
        assert table["next.done"].to_pylist()[part] == [False] * (row.length - 1) + [True]


def test_actions_are_within_limits_and_labels_are_the_experts_own():
    environment = make_environment("metaworld", "handle-press", image_size=16)
    clean, noisy = (record_demonstration(environment, 3, noise) for noise in (0.0, 0.3))
    for demonstration in (clean, noisy):
        assert np.abs(demonstration.actions).max() <= 1
        assert demonstration.success[-6:].any() and not demonstration.success[:-6].any()
    # Nothing was disturbed before the first action, so its label is the same; where it led to differs.
    assert np.array_equal(clean.actions[0], noisy.actions[0])
    assert not np.array_equal(clean.states[1], noisy.states[1])
    environment.close()


def test_failed_seeds_are_replaced_and_told(monkeypatch):
    class Fake:
        task = "drawer-open"

        def close(self):
            pass

    monkeypatch.setattr("hf_vla.evaluation.demonstrations.make_environment", lambda *args, **kwargs: Fake())
    monkeypatch.setattr(
        "hf_vla.evaluation.demonstrations.record_demonstration", lambda _, seed, noise: seed if seed % 3 == 0 else None
    )
    collected = list(collect_demonstrations("metaworld", ["drawer-open"], 3, first_seed=1))
    assert [(seed, demonstration) for _, seed, demonstration in collected if demonstration] == [(3, 3), (6, 6), (9, 9)]
    assert [seed for _, seed, _ in collected] == list(range(1, 10))
    monkeypatch.setattr("hf_vla.evaluation.demonstrations.record_demonstration", lambda *args, **kwargs: None)
    with pytest.raises(ValueError, match="solved only 0 of 15 episodes of 'drawer-open'"):
        list(collect_demonstrations("metaworld", ["drawer-open"], 2))


class Dial(Environment):
    """Turns to its target; the simulator fails in an episode for which the class is told so."""

    name, task, instruction = "dial", "turn", "turn the dial"
    action_low, action_high = np.array([-1, -1], np.float32), np.array([1, 1], np.float32)
    action_names, state_names, camera_names = ("turn", "grip"), ("angle",), ("front",)
    fps, max_steps, robot_type = 10, 9, "dial"
    breaks_at, resets = None, []

    def __init__(self, task="turn"):
        self.task = task

    @classmethod
    def task_names(cls):
        return ["turn", "press"]

    def reset(self, seed):
        self.resets.append((self.task, seed))
        if (self.task, seed) == self.breaks_at:
            raise RuntimeError("the simulator broke")
        self.angle, self.target, self.steps = 0.0, 1.5 if seed % 4 else 99.0, 0
        return self.observation()

    def observation(self):
        image = Image.new("RGB", (64, 64), (int(20 * self.angle) + 100, 0, 9))
        return {"image": [image], "lang": self.instruction, "state": np.array([[self.angle]], np.float32)}

    def step(self, action):
        self.angle, self.steps = self.angle + float(action[0]) / 2, self.steps + 1
        return StepResult(0.0, False, self.steps == self.max_steps, self.angle > self.target, {})

    def expert_action(self):
        return np.array([1, 0], np.float32)

    def render(self, size=None):
        raise NotImplementedError

    def close(self):
        pass


def test_an_interrupted_recording_goes_on(tmp_path, monkeypatch):
    monkeypatch.setitem(environments._REGISTERED, "dial", Dial)
    monkeypatch.setattr(Dial, "resets", [])

    def record(folder, episodes=3, noise=0.1):
        Dial.resets.clear()
        record_dataset(tmp_path / folder, "dial", ["turn", "press"], episodes, noise=noise, progress=False)
        return Dial.resets[1:]  # without that of the example, whose images say how large they are

    whole = record("whole")
    assert whole == [(task, seed) for task in ("turn", "press") for seed in range(4)]  # the expert fails on seed 0
    monkeypatch.setattr(Dial, "breaks_at", ("press", 2))
    with pytest.raises(RuntimeError, match="broke"):
        record("broken")
    assert not (tmp_path / "broken").exists() and (tmp_path / "broken.partial" / "recording.json").is_file()
    monkeypatch.setattr(Dial, "breaks_at", None)
    with pytest.raises(
        FileExistsError, match=r"unfinished recording with other settings: noise was 0.1 and is now 0.2"
    ):
        record("broken", noise=0.2)
    left = tmp_path / ".broken.0a0a0a0a.partial"  # of a process that was killed
    left.mkdir()
    others = tmp_path / ".broken.v2.0a0a0a0a.partial"  # of the dataset broken.v2, which may be under way
    others.mkdir()
    assert record("broken") == [("press", 2), ("press", 3)]
    assert sorted(path.name for path in tmp_path.iterdir()) == [others.name, "broken", "whole"]
    files = [path.relative_to(tmp_path / "whole") for path in (tmp_path / "whole").rglob("*") if path.is_file()]
    for file in files:
        assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "broken" / file).read_bytes(), file


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--task": "drawer-opn"}, "unknown MetaWorld task 'drawer-opn'; possible: drawer-open"),
        ({"--task": "drawer-open,drawer-open-v3"}, "each once"),
        ({"--env": "libera"}, "unknown environment 'libera'; possible: "),
        ({"--episodes": "0"}, "episodes is 0"),
        ({"--noise": "-1"}, "noise is -1"),
        ({"--camera": "corner9"}, "unknown MetaWorld camera 'corner9'"),
        ({"--episodez": "2"}, "did you mean --episodes"),
    ],
)
def test_bad_input_is_one_line(tmp_path, capsys, change, message):
    arguments = {"--env": "metaworld", "--task": "drawer-open", "--episodes": "1", "--output": str(tmp_path / "out")}
    error = failure(capsys, [item for pair in (arguments | change).items() for item in pair])
    assert message in error
    assert not (tmp_path / "out").exists() and not list(tmp_path.iterdir())


def test_existing_output_is_kept(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    done = run("--task", "drawer-open", "--episodes", 1, "--output", tmp_path, "--image-size", 16)
    assert done.returncode == 2
    assert "exists and is not empty" in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def failure(capsys, arguments) -> str:
    """Run the command's main in this process, where it must end with status 2 and one error line."""
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert stopped.value.code == 2 and len(lines) == 1
    return lines[0]
