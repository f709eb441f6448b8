"""The notebooks of examples/ run from top to bottom, on tiny policies and a toy simulator.

Their first code cell holds the settings, which are replaced here; all else is run as it is. A line that begins with "!" is a
command, as in Jupyter.
"""

import json
import re
import shlex
from pathlib import Path

import pytest
import torch
from reference_cases import base_vlm
from tiny_vlms import write_tiny_vlm

import hf_vla
from hf_vla.commands.main import main as hf_vla_command
from hf_vla.plugins import USER_CODE, load_plugins
from hf_vla.utils import extras

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))
LESSON = '''
import hf_vla
import numpy as np
from toy import ToyEnvironment


class Lesson(ToyEnvironment):
    """The toy simulator, with an expert to record and a picture that is large enough for a backbone."""

    name = "lesson"

    def expert_action(self):
        return np.clip([self.target - self.position], -1, 1).astype(np.float32)

    def settings(self):
        return {"max_steps": self.max_steps}

    def observation(self):
        return {**super().observation(), "image": [self.render(32)]}


hf_vla.register_environment("lesson", Lesson)
'''


def cells(notebook: Path) -> list[tuple[str, str]]:
    content = json.loads(notebook.read_text(encoding="utf-8"))
    return [(cell["cell_type"], "".join(cell["source"])) for cell in content["cells"]]


def run(name: str, **settings) -> dict:
    """Run a notebook with these settings; the names that it leaves."""
    first, *rest = (text for kind, text in cells(EXAMPLES / f"{name}.ipynb") if kind == "code")
    names: dict = {}
    exec(compile(first, name, "exec"), names)
    unknown = settings.keys() - names.keys()
    assert not unknown, f"{name} has no settings {unknown}"
    names |= settings
    for cell in rest:
        for line in re.split(r"^(!.*)$", cell, flags=re.MULTILINE):
            if line.startswith("!"):
                command, *arguments = shlex.split(re.sub(r"\{(\w+)\}", lambda m: str(names[m[1]]), line[1:]))
                assert command == "hf-vla" and hf_vla_command(arguments) == 0, line
            else:
                exec(compile(line, name, "exec"), names)
    return names


@pytest.fixture
def place(monkeypatch, tmp_path) -> Path:
    """Where a copy of the repository would be: notebooks run in its folder `examples`."""
    (tmp_path / "examples").mkdir()
    monkeypatch.chdir(tmp_path / "examples")
    return tmp_path


@pytest.fixture(scope="module")
def plugin(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("plugin") / "lesson.py"
    file.write_text(LESSON)
    return file


@pytest.fixture
def lesson(monkeypatch, place, plugin) -> Path:
    """The toy simulator, which processes know, too."""
    monkeypatch.setenv(USER_CODE, str(plugin))
    monkeypatch.setattr("os.cpu_count", lambda: 1)  # recordings in this process
    load_plugins()
    return place


def tiny_policy(folder: Path) -> Path:
    """For the toy simulator's robot."""
    line = {"min": [-1.0], "max": [1.0]}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, processor = hf_vla.QwenOFTForActionPrediction.from_vlm(
            base_vlm(), random_init=True, action_dim=1, state_dim=1, action_horizon=4, action_names={"point": ["dx"]},
            statistics={"point": {"action": line, "state": {"min": [0.0], "max": [12.0]}}},
            normalization_modes={"point": {"action": "min_max", "state": "min_max"}},
        )  # fmt: skip
    hf_vla.Policy(model, processor).save_pretrained(folder)
    return folder


def test_look_at_a_dataset(dataset, capsys):
    names = run("look_at_a_dataset", DATASET=str(dataset))
    assert names["item"]["action"].shape == (8, 2) and names["figure"].axes
    assert "instructions: ['pull the block', 'push the block']" in capsys.readouterr().out


@pytest.mark.slow
def test_finetune_with_lora(lesson):
    base = tiny_policy(lesson / "base")
    names = run("finetune_with_lora", POLICY=str(base), ENV="lesson", TASK="reach", EPISODES=2, STEPS=2)
    assert names["actions"].shape == (4, 1)
    for left in ("adapter/adapter_model.safetensors", "adapter-merged/model.safetensors", "adapter/report.html"):
        assert (lesson / "outputs" / "notebook" / left).is_file(), left


@pytest.mark.slow
def test_evaluate_and_compare(lesson, capsys):
    one = tiny_policy(lesson / "one")
    run("evaluate_and_compare", MODELS={"a": str(one), "b": str(one)}, ENV="lesson", TASKS=["reach"], EPISODES=2)
    out = capsys.readouterr().out
    assert "a (blind)" in out and "a minus b: +0 points, p = 1: may be noise" in out


@pytest.mark.slow
def test_reinforcement_learning(lesson, recipe_in, capsys):
    recipe = recipe_in(lesson)
    recipe.write_text(
        recipe.read_text().replace("action_horizon: 4", "action_horizon: 8")
    )  # as long as the quickstart's
    names = run(
        "reinforcement_learning", RECIPE=str(recipe), STEPS=2,
        ENV="lesson", SHOWN="reach", TASK="reach", ITERATIONS=1, EPISODES=2, TEST_EPISODES=2, WORKERS=1,
    )  # fmt: skip
    assert names["pair"].episodes == 2 and len(names["iterations"]) == 1
    out = capsys.readouterr().out
    assert "1 rollout/success_once" in out and "after minus before: " in out and "after (blind)" in out


def test_a_framework_of_your_own(place):
    names = run("a_framework_of_your_own", BACKBONE=str(write_tiny_vlm(place / "vlm")), STEPS=20)
    assert names["losses"][-1] < names["losses"][0] / 2
    assert type(names["loaded"].model) is names["MeanForActionPrediction"]
    assert (place / "outputs" / "notebook" / "mean-policy" / "config.json").is_file()


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda notebook: notebook.stem)
def test_notebooks_are_clean(notebook, monkeypatch):
    """No outputs are committed, each is tested here, explains each cell, and says what to install, also if it is missing."""
    content = json.loads(notebook.read_text(encoding="utf-8"))
    assert all(not cell.get("outputs") and cell.get("execution_count") is None for cell in content["cells"])
    assert f'"{notebook.stem}"' in Path(__file__).read_text()
    texts = cells(notebook)
    assert all(before[0] == "markdown" for before, cell in zip(texts, texts[1:], strict=False) if cell[0] == "code")
    needed = re.search(r"pip install 'hf_vla\[([\w,]+)\]'", texts[0][1])[1].split(",")
    monkeypatch.setattr(extras, "lacking", lambda extra: [f"something of {extra}"])
    first = next(text for kind, text in texts if kind == "code")
    with pytest.raises(ModuleNotFoundError) as missing:
        exec(compile(first, notebook.stem, "exec"), {})
    assert f'pip install "hf_vla[{",".join(needed)}]"' in str(missing.value)
