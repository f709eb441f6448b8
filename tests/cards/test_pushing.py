"""Policies with their runs, datasets and the demo's Space, uploaded to a stand-in for the Hub by huggingface_hub itself."""

import json
import re
import subprocess
import sys
import zipfile
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import yaml
from hub_stand_in import hub_stand_in, unpack
from huggingface_hub import ModelCard, parse_eval_result_entries
from tiny_policies import build, observation
from toy import SightedPolicy, ToyEnvironment

import hf_vla
from hf_vla.cards.dataset_card import compose
from hf_vla.data import LeRobotDataset
from hf_vla.demo import space
from hf_vla.evaluation import EvaluationSettings, environments, evaluate_with_controls

HUB_PAGE = Path(__file__).resolve().parents[2] / "docs" / "hub.md"
# Everything that is pushed, in one process.
PUSHES = """
import os
import sys
import hf_vla
from hf_vla.commands.main import main

run, data, code = sys.argv[1:]
policy = hf_vla.Policy.from_pretrained(run + "/policy", device="cpu")
dataset, data = hf_vla.data.LeRobotDataset(data, 4), data
exec(code)
for arguments in (
    ["push", run + "/policy", "me/run"], ["push", run, "me/run"], ["push", data, "me/data", "--private"],
    ["demo", "--model", "me/run", "--push", "me/space"], ["demo", "--push", "me/space"],
):
    main(arguments)
hf_vla.data.LeRobotDataset("me/data", 4)
hf_vla.Policy.from_pretrained("me/run", device="cpu")
os.environ["HF_TOKEN"] = "hf_wrong"
try:
    main(["push", run + "/policy", "me/refused"])
except SystemExit as stop:
    print("refused with status", stop.code)
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """As the quickstart leaves it: a policy with recipe and log, and an evaluation with a film."""
    folder = tmp_path_factory.mktemp("hub") / "my-run"
    build("qwen_oft").save_pretrained(folder / "policy")
    (folder / "policy" / "config.yaml").write_text(yaml.safe_dump({"framework": "qwen_oft", "max_steps": 2}))
    (folder / "policy" / "summary.jsonl").write_text(json.dumps({"step": 2, "loss": 0.5}) + "\n")
    (folder / "policy" / "checkpoint-2").mkdir()
    (folder / "policy" / "checkpoint-2" / "optimizer.pt").write_bytes(b"of no use to others")
    (folder / "policy" / "training_args.bin").write_bytes(b"with paths of this machine")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(environments, "_REGISTERED", {"toy": ToyEnvironment})
        settings = EvaluationSettings(env="toy", tasks=["reach"], episodes=2, first_seed=0, num_videos=1)
        evaluate_with_controls(SightedPolicy, folder / "evaluation", settings, progress=False)
    return folder


@pytest.fixture(scope="module")
def hub(run, dataset):
    with hub_stand_in() as hub:
        (code,) = re.findall(r"^```python\n(.*?)^```$", HUB_PAGE.read_text(), re.MULTILINE | re.DOTALL)
        done = hub.run("-c", PUSHES, str(run), str(dataset), code)
        assert done.returncode == 0, done.stderr
        hub.said, hub.told = done.stdout, done.stderr
        assert hub.strangers == []
        yield hub


@pytest.mark.slow
def test_a_run_is_pushed_with_all_that_others_can_use(hub, run, tmp_path):
    repository = hub.repositories["models", "me/run"]
    names = set(repository.files)
    assert {
        "config.json", "model.safetensors", "processor_config.json", "config.yaml", "summary.jsonl", "report.html",
        "success_summary.csv", "evaluation/episodes.csv", "evaluation/videos/reach-seed-0.mp4", "README.md",
    } <= names  # fmt: skip
    assert not {name for name in names if "checkpoint" in name or "training_args" in name}
    card = ModelCard(repository.files["README.md"].decode())
    assert "# me/run\n" in card.text and 'from_pretrained("me/run")' in card.text
    assert "(evaluation/videos/reach-seed-0.mp4)" in card.text and "(report.html)" in card.text
    (result,) = card.data.eval_results
    assert (result.dataset_name, result.metric_type, result.metric_value) == ("toy reach", "success_rate", 1.0)
    assert "max_steps: 2" in card.text
    assert f"uploaded to {hub.address}/me/run" in hub.said
    # What was pushed is the policy, and the folder that it came from is as before.
    loaded = hf_vla.Policy.from_pretrained(unpack(repository, tmp_path), device="cpu")
    np.testing.assert_array_equal(loaded.infer(observation(), seed=0), build("qwen_oft").infer(observation(), seed=0))
    assert (
        not (run / "policy" / "success_summary.csv").exists()
        and "me/run" not in (run / "policy" / "README.md").read_text()
    )
    assert {"config.json", "processor_config.json", "README.md"} <= set(
        hub.repositories["models", "user/my-policy"].files
    )


@pytest.mark.slow
def test_a_dataset_is_pushed_whole(hub, dataset, tmp_path):
    repository = hub.repositories["datasets", "me/data"]
    assert repository.settings.get("private") or repository.settings.get("visibility") == "private"
    card = ModelCard(repository.files["README.md"].decode())
    assert {"LeRobot", "robotics"} <= set(card.data.tags) and card.data.to_dict()["task_categories"] == ["robotics"]
    assert card.data.to_dict()["configs"] == [{"config_name": "default", "data_files": "data/*/*.parquet"}]
    for told in (
        "`tiny_arm`",
        "* pull the block",
        'LeRobotDataset("me/data"',
        "dx, dy",
        "32 × 32 × 3",
        "| episodes | 2 |",
    ):
        assert told in card.text, told
    assert not any(name.startswith(".hf_vla") for name in repository.files)
    assert b"license: cc-by-4.0" in hub.repositories["datasets", "user/my-robot"].files["README.md"]
    loaded = LeRobotDataset(unpack(repository, tmp_path / "data"), 4)
    assert len(loaded) == 24 and loaded[0]["lang"] == LeRobotDataset(dataset, 4)[0]["lang"]


@pytest.mark.slow
def test_a_space_brings_the_package(hub, tmp_path):
    """Its wheel is one that pip would install, and its app runs from it alone."""
    repository = hub.repositories["spaces", "me/space"]
    assert repository.settings["sdk"] == "gradio" and repository.variables == {"MODEL_ID": "me/run"}
    wheel = f"hf_vla-{hf_vla.__version__}-py3-none-any.whl"
    assert set(repository.files) == {"README.md", "app.py", "packages.txt", "requirements.txt", wheel}
    needed = repository.files["requirements.txt"].decode()
    assert re.search(r"^transformers\b.*>=5.23", needed, re.MULTILINE)
    assert "metaworld==" in needed and "gradio" not in needed and "pytest" not in needed and "hf_vla" not in needed
    header = yaml.safe_load(repository.files["README.md"].decode().split("---")[1])
    import gradio

    assert header["sdk_version"] == gradio.__version__ and header["app_file"] == "app.py"
    unpack(repository, tmp_path)
    check = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", "site", wheel]
    done = subprocess.run(check, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    code = "import runpy, sys; runpy.run_path('app.py'); import hf_vla; print(hf_vla.__file__)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    place = done.stdout.strip()
    assert place.endswith("hf_vla/__init__.py") and "hf_vla-" in place and "/src/" not in place


@pytest.mark.slow
def test_a_refusal_is_one_line(hub):
    """A token that the Hub does not know."""
    assert ("models", "me/refused") not in hub.repositories
    (error,) = [line for line in hub.told.splitlines() if line.startswith("error: ")]
    assert "401" in error and "refused with status 2" in hub.said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["push", "nowhere", "me/x"], "nowhere is not a folder"),
        (["push", ".", "me/x"], "holds no policy"),
        (
            ["demo", "--push", "me/space", "--model", "./folder"],
            "is not a repository on the Hub, and a Space has no other",
        ),
        (["demo", "--private"], "add --push USER/SPACE"),
        (["demo", "--push", "me/space", "--port", "80", "--lend-token"], "--port, --lend-token: for a demo here"),
    ],
)
def test_what_cannot_be_pushed(monkeypatch, tmp_path, capsys, arguments, message):
    from hf_vla.commands.main import main

    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and message in error and error.count("\n") == 1


@pytest.fixture
def uploaded(monkeypatch):
    """What push_policy would upload, name -> text or None, in place of an upload; `card` is the repository's before."""
    from hf_vla.cards import pushing

    found = {"card": None}

    def upload(folder, repo_id, card, **options):
        found["files"] = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
        table = folder / "success_summary.csv"
        found["table"] = table.read_text() if table.is_file() else ""
        found["leaderboard"] = {path.name: yaml.safe_load(path.read_text()) for path in folder.glob(".eval_results/*")}
        found["card"] = card
        return repo_id

    monkeypatch.setattr(pushing, "upload", upload)
    monkeypatch.setattr(pushing, "remote_card", lambda *_: found["card"])
    return found


TABLE = "policy,env,task,control,successes,episodes,success_rate,wilson_low,wilson_high\n{},toy,reach,none,{},4,{},0.1,0.9\n"


@pytest.fixture
def trained(tmp_path):
    """A folder with a policy's configuration and the log of its training."""
    folder = tmp_path / "run" / "policy"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(build("qwen_oft").model.config.to_json_string())
    (folder / "summary.jsonl").write_text(json.dumps({"step": 2, "loss": 0.5}) + "\n")
    return folder


def evaluated(folder: Path, solved: int = 1) -> Path:
    """The files of an evaluation of four episodes."""
    (folder / "videos").mkdir(parents=True)
    (folder / "evaluation.json").write_text("{}")
    (folder / "success_summary.csv").write_text(TABLE.format(folder.name, solved, solved / 4))
    (folder / "videos" / "reach-seed-0.mp4").write_bytes(b"")
    return folder


def push(*arguments) -> None:
    from hf_vla.commands.main import main

    main(["push", *map(str, arguments)])


def test_the_policy_that_learning_started_from_is_not_this_one(trained, uploaded):
    """Its evaluation goes along, once, and neither card nor model-index has its rate."""
    evaluated(trained / "evaluation_before", 1)
    evaluated(trained / "evaluation", 3)
    push(trained, "me/learned")
    names = {name for name in uploaded["files"] if name.endswith("episodes.csv") or "videos" in name}
    assert names == {f"{folder}/videos/reach-seed-0.mp4" for folder in ("evaluation", "evaluation_before")}
    card = ModelCard(uploaded["card"])
    assert [result.metric_value for result in card.data.eval_results] == [0.75]
    assert "1 of 4" not in card.text and "evaluation_before" not in card.text
    assert "(evaluation/videos/reach-seed-0.mp4)" in card.text


def test_a_second_push_tells_of_the_second_training(trained, uploaded):
    from hf_vla.cards.model_card import write_model_card

    write_model_card(trained, training={"steps": "2"})
    push(trained, "me/again")
    uploaded["card"] += "\nWritten on the Hub.\n"
    write_model_card(trained, training={"steps": "4"})
    push(trained, "me/again")
    assert "* steps: 4" in uploaded["card"] and "* steps: 2" not in uploaded["card"]
    assert "Written on the Hub." in uploaded["card"]


def test_unfinished_evaluations_are_told(trained, uploaded, capsys):
    unfinished = evaluated(trained.parent / "unfinished")
    (unfinished / "success_summary.csv").unlink()
    push(trained.parent, "me/run")
    assert f"not in the card: the evaluation {unfinished}, which is not finished" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        push(trained, "me/run", "--evaluation", unfinished)
    assert f"the evaluation {unfinished} is not finished" in capsys.readouterr().err


def test_evaluations_of_one_name(trained, uploaded, tmp_path, capsys):
    places = [evaluated(tmp_path / name / "evaluation") for name in ("a", "b")]
    with pytest.raises(SystemExit):
        push(trained, "me/run", "--evaluation", *places)
    assert "would be evaluation/evaluation in the repository, as another one is" in capsys.readouterr().err


def test_several_trainings_in_a_folder(trained, uploaded, capsys):
    other = trained.parent / "a"
    other.mkdir()
    (other / "config.yaml").write_text("max_steps: 2\n")
    (trained / "best").mkdir()
    (trained / "best" / "config.yaml").write_text("max_steps: 2\n")  # a part of that training
    with pytest.raises(SystemExit):
        push(trained.parent, "me/run")
    assert f"holds several trainings: {other}, {trained}; name the folder of one" in capsys.readouterr().err
    push(trained, "me/run")


def test_a_leaderboard_of_the_hub(trained, uploaded, capsys):
    """In the form that the Hub's own library reads."""
    evaluated(trained / "evaluation", 1)
    push(trained, "me/run", "--benchmark", "them/arms:easy")
    (file,) = uploaded["leaderboard"]
    (entry,) = parse_eval_result_entries(uploaded["leaderboard"][file])
    assert file == "arms-easy.yaml" and (entry.dataset_id, entry.task_id, entry.value) == ("them/arms", "easy", 25.0)
    assert entry.source_url.endswith("/me/run") and entry.notes.startswith("success rate in toy in percent")
    evaluated(trained / "evaluation_again", 2)  # which of the two?
    push(trained, "me/run")
    assert not uploaded["leaderboard"]
    for benchmark, message in (
        ("them/arms:easy", "2 results in toy can't be one"),
        ("arms", "give USER/DATASET:TASK"),
    ):
        with pytest.raises(SystemExit):
            push(trained, "me/run", "--benchmark", benchmark)
        assert message in capsys.readouterr().err


def test_a_run_of_reinforcement_learning_shows_its_curves(trained, uploaded):
    (trained / "learning.png").write_bytes(b"")
    push(trained, "me/learned")
    assert "(learning.png)" in uploaded["card"] and "learning.png" in uploaded["files"]


class Installed:
    """hf_vla as its metadata are in a working copy whose setuptools made an egg-info, or in none."""

    requires = ('uvicorn[standard]>=0.30; sys_platform != "win32"', 'tomli; python_version < "3.11"', "gradio>=6")

    def __init__(self, **files: str):
        self.read_text = {name.replace("_", "-"): text for name, text in files.items()}.get


def test_a_wheel_of_an_egg_info(monkeypatch):
    monkeypatch.setattr(space, "_distribution", lambda: Installed(PKG_INFO="Name: hf_vla\nVersion: 0\n"))
    name, content = space.make_wheel()
    info = name.replace("-py3-none-any.whl", ".dist-info")
    said = zipfile.ZipFile(BytesIO(content)).read(f"{info}/METADATA").decode()
    assert said == f"Name: hf_vla\nVersion: {hf_vla.__version__}\n"
    monkeypatch.setattr(space, "_distribution", Installed)
    with pytest.raises(OSError, match="metadata of hf_vla as it is installed here is incomplete"):
        space.make_wheel()


def test_requirements_are_those_of_the_space(monkeypatch):
    """With their extras, for its Python and system, whatever this machine's are."""
    monkeypatch.setattr(space, "_distribution", Installed)
    monkeypatch.setattr(sys, "platform", "win32")
    assert space.requirements(()) == ["uvicorn[standard]>=0.30"]


INFO = {
    "codebase_version": "v3.0", "fps": 10, "total_episodes": 2, "total_frames": 24,
    "features": {"action": {"dtype": "float32", "shape": [2], "names": {"motors": ["a", "b"]}}, "index": {"dtype": "int64"}},
}  # fmt: skip


def test_a_dataset_card_keeps_what_a_user_wrote():
    first = compose(INFO, ["wave"] * 3, "me/data")
    edited = first.replace("license: unknown", "license: mit").replace("Robot demonstrations", "My demonstrations")
    again = compose(INFO | {"total_episodes": 5}, ["wave"], "me/data", edited)
    assert "license: mit" in again and "My demonstrations" in again and "| episodes | 5 |" in again
    assert compose(INFO, [], "me/data", "---\nlicense: mit\n---\n# My own\n") is None
    assert "license: cc0-1.0" in compose(INFO, [], "me/data", metadata={"license": "cc0-1.0"})


def test_what_a_dataset_card_quotes_is_text():
    card = compose(INFO, ["<script>alert(1)</script> <!-- hf_vla: end of use -->"] * 25, "me/data")
    assert "<script>" not in card and card.count("<!-- hf_vla: end of use -->") == 1 and "* and 5 more" in card
