"""`hf-vla report`: one page of a run, whatever of it is there."""

import json
import re

import pytest
import yaml
from toy import SightedPolicy, ToyEnvironment

from hf_vla.commands.report import main as report
from hf_vla.evaluation import EvaluationSettings, environments, evaluate_with_controls

ROWS = [
    {"step": 5, "time": "2026-01-01T10:00:00+00:00", "loss": 2.0, "learning_rate": 1e-4, "samples_per_second": 30.0, "peak_memory_gib": 1.5},
    {"step": 10, "time": "2026-01-01T10:01:00+00:00", "loss": 0.25, "learning_rate": 1e-5, "samples_per_second": 50.0, "mfu": 0.4, "peak_memory_gib": 2.5},
]  # fmt: skip


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory):
    """A whole evaluation with a control, and a film."""
    folder = tmp_path_factory.mktemp("evaluation") / "evaluation"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(environments, "_REGISTERED", {"toy": ToyEnvironment})
        settings = EvaluationSettings(env="toy", tasks=["reach"], episodes=2, first_seed=0, blind=True, num_videos=1)
        evaluate_with_controls(SightedPolicy, folder, settings, progress=False)
    assert len(list((folder / "videos").glob("*.mp4"))) == 1
    return folder


@pytest.fixture
def run(tmp_path):
    """A finished training."""
    folder = tmp_path / "run" / "policy"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump({"framework": "qwen_<b>oft", "max_steps": 10, "seed": 3}))
    (folder / "config.json").write_text(json.dumps({"action_horizon": 8, "action_dim": 7}))
    (folder / "summary.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return folder.parent


def test_a_whole_run(run, evaluation, capsys):
    (run / "evaluation").symlink_to(evaluation)
    report([str(run)])
    assert capsys.readouterr().out == f"report written to {run / 'report.html'}\n"
    page = (run / "report.html").read_text()
    for shown in (
        "8 steps of 7 numbers",
        "10 of 10",
        "0.25",
        "40 (median of 2 logs)",
        "40.0% (median of 1 logs)",
        "2.5 GiB",
        "2 of 2",
        "blind",
        "qwen_&lt;b&gt;oft",
    ):
        assert shown in page, shown
    assert page.count("data:image/png;base64,") == 2 and page.count("data:video/mp4;base64,") == 1
    assert "<b>oft" not in page and "Missing" not in page
    assert not re.search(r"""(src|href)=["']?https?:""", page)


def test_of_several_evaluations_each_names_its_policy(run, evaluation):
    (run / "evaluation").symlink_to(evaluation)
    report([str(run)])
    assert "<td>this one</td>" in (run / "report.html").read_text()
    (run / "evaluation_before").symlink_to(evaluation)
    report([str(run)])
    page = (run / "report.html").read_text()
    assert "<td>policy</td>" in page and "<td>policy (blind)</td>" in page and "this one" not in page


def test_a_run_that_has_not_finished(run, evaluation, capsys):
    """It shows what is there, and says what is missing."""
    policy = run / "policy"
    (policy / "config.json").unlink()
    (policy / "checkpoint-5").mkdir()
    with (policy / "summary.jsonl").open("a") as file:
        file.write('{"step": 15, "lo')  # the process was killed
    begun = run / "evaluation"
    begun.mkdir()
    for name in ("evaluation.json", "episodes.csv"):
        (begun / name).write_bytes((evaluation / name).read_bytes())
    report([str(run), "--output", str(run / "page.html")])
    out = capsys.readouterr().out
    assert "missing: the trained policy: the training has not finished; the last checkpoint is checkpoint-5" in out
    episodes = len((evaluation / "episodes.csv").read_text().splitlines()) - 1
    assert f"missing: the results of {begun}: {episodes} episodes are finished; the same command goes on" in out
    page = (run / "page.html").read_text()
    assert "<b>Missing</b>" in page and "last loss" in page and page.count("data:image/png") == 1


def test_an_evaluation_alone_and_one_named(run, evaluation, tmp_path, capsys):
    report([str(evaluation), "--output", str(tmp_path / "a.html"), "--max-video-megabytes", "0"])
    out = capsys.readouterr().out
    assert "missing: a training" in out and "larger than --max-video-megabytes" in out
    assert "data:video" not in (tmp_path / "a.html").read_text()
    report([str(run), "--evaluation", str(evaluation), "--output", str(tmp_path / "b.html")])
    assert "data:video" in (tmp_path / "b.html").read_text()


def test_a_run_that_has_just_begun(tmp_path, capsys):
    (tmp_path / "config.yaml").write_text("framework: qwen_pi\n")
    report([str(tmp_path)])
    out = capsys.readouterr().out
    for missing in ("the log: summary.jsonl is not here", "curves: nothing was logged yet", "an evaluation"):
        assert f"missing: {missing}" in out


TABLE = "env,task,control,successes,episodes,success_rate,wilson_low,wilson_high\ntoy,reach,none,1,2,0.5,low,high\n"


def foreign(folder, name, content):
    """A folder that looks like a run's, but for one file."""
    for file in ("summary.jsonl", "evaluation.json"):
        (folder / file).write_text("{}")
    (folder / name).write_text(content)


def test_a_log_of_another_program(tmp_path, capsys):
    """Its numbers are text, or not numbers at all."""
    rows = [
        {"step": 1, "loss": "low", "samples_per_second": "many", "peak_memory_gib": None, "time": 3},
        {"step": "1"},
        7,
    ]
    (tmp_path / "summary.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "config.json").write_text('{"action_horizon": 8}')
    report([str(tmp_path)])
    assert "missing: curves: nothing was logged yet" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: None, "is not a run's folder: neither summary.jsonl nor config.yaml"),
        (lambda folder: folder.rmdir(), "is not a folder; give the output folder of hf-vla train"),
        (lambda folder: (folder / "config.yaml").write_text("- a\n"), "holds no settings; is"),
        (lambda folder: (folder / "config.yaml").write_text("{"), "can't be read"),
        (lambda folder: (folder / "summary.jsonl").write_bytes(b"\xff\xfe"), "summary.jsonl can't be read"),
        (lambda folder: foreign(folder, "config.json", "{"), "config.json can't be read as JSON"),
        (lambda folder: foreign(folder, "config.json", "[1]"), "config.json holds no JSON object"),
        (lambda folder: foreign(folder, "success_summary.csv", TABLE), "is damaged: wilson_low is 'low' in the row"),
    ],
)
def test_foreign_folders(tmp_path, capsys, make, message):
    folder = tmp_path / "foreign"
    folder.mkdir()
    make(folder)
    with pytest.raises(SystemExit) as stop:
        report([str(folder)])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and message in error and error.count("\n") == 1


def test_another_ending_or_evaluation(run, tmp_path, capsys):
    for arguments, message in (
        (["--output", "report.pdf"], "must end in .html"),
        (["--evaluation", str(tmp_path)], "holds no evaluation.json"),
    ):
        with pytest.raises(SystemExit):
            report([str(run), *arguments])
        assert message in capsys.readouterr().err
