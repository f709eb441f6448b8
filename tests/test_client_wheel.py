"""hf-vla-client: a second wheel of the same files, for simulators' environments; no torch, no transformers, Python 3.8."""

import ast
import csv
import json
import os
import shutil
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import numpy as np
import pytest
import tiny_policies
from served_policies import served

from hf_vla.evaluation import EvaluationSettings, evaluate_with_controls
from hf_vla.evaluation.records import load_record, record_names
from hf_vla.plugins import import_user_code

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[1]
TOY_ARM = ROOT / "tests" / "evaluation" / "toy_arm.py"
#: Runs the client where only these modules and Python's own can be imported.
ALONE = """
import sys
class OnlyWhatTheClientNeeds:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        known = {"hf_vla", "numpy", "PIL", "msgpack", "websockets", "toy_arm", "__mp_main__"}
        if top not in known and top not in sys.stdlib_module_names and not top.startswith("_"):
            raise ModuleNotFoundError(f"No module named {top!r}", name=top)
sys.meta_path.insert(0, OnlyWhatTheClientNeeds())
import hf_vla
assert "site" in hf_vla.__file__ and not hasattr(hf_vla, "Policy"), hf_vla.__file__
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy, so that the repository stays clean."""
    folder = tmp_path_factory.mktemp("client")
    shutil.copytree(ROOT / "src", folder / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    shutil.copytree(ROOT / "client", folder / "client", ignore=shutil.ignore_patterns("build", "*.egg-info"))
    command = ["-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", folder]
    done = subprocess.run(
        [sys.executable, *map(str, command), str(folder / "client")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def site(wheel, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("installed") / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def run(site: Path, code: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": str(site), "OMP_NUM_THREADS": "1", **variables}
    command = [sys.executable, "-c", ALONE + code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=site.parent, env=environment)


def client(site: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess:
    return run(
        site, "from hf_vla.evaluation.client import main\nsys.exit(main(sys.argv[1:]))", *arguments, **variables
    )


def test_what_it_says_of_itself(wheel):
    with zipfile.ZipFile(wheel) as archive:
        read = {Path(name).name: archive.read(name).decode() for name in archive.namelist() if ".dist-info/" in name}
    metadata = Parser().parsestr(read["METADATA"])
    assert (metadata["Name"], metadata["Requires-Python"]) == ("hf-vla-client", ">=3.8")
    needed = {line.partition(">")[0] for line in metadata.get_all("Requires-Dist")}
    assert needed == {"numpy", "pillow", "msgpack", "websockets"}
    assert "hf-vla-client = hf_vla.evaluation.client:main" in read["entry_points.txt"]


def test_python_38_reads_it(site):
    files = list(site.glob("hf_vla/**/*.py"))
    assert len(files) > 30
    for file in files:
        source = file.read_text()
        tree = ast.parse(source, feature_version=(3, 8))
        # Not evaluated, or Python 3.8 would stumble over list[int] and int | None.
        assert "from __future__ import annotations" in source or file.name == "__init__.py", file
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            assert not {"strict", "kw_only"} & {keyword.arg for keyword in call.keywords}, (file, call.lineno)
            if getattr(call.func, "id", None) == "isinstance":
                assert not isinstance(call.args[1], ast.BinOp), (file, call.lineno)
        newer = {"removesuffix", "removeprefix", "cache", "pairwise"}
        used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        assert not newer & used, (file, newer & used)


def test_it_has_the_same_records(site):
    code = "from hf_vla.evaluation.records import load_record, record_names\n"
    code += "print({(n, p): repr(load_record(n, p)) for n in record_names() for p in (None, 'current', 'published')})"
    done = run(site, code)
    assert done.returncode == 0, done.stderr
    theirs = ast.literal_eval(done.stdout)
    ours = {(n, p): repr(load_record(n, p)) for n in record_names() for p in (None, "current", "published")}
    assert theirs == ours


def test_a_served_policy_gives_the_same_episodes_as_one_in_process(site, tmp_path, monkeypatch):
    policy = tiny_policies.build("qwen_oft")
    with served(policy) as address:
        done = client(
            site,
            *("--server", address, "--import", str(TOY_ARM), "--env", "toy_arm", "--task", "wave", "--episodes", "3"),
            *("--execute-steps", "2", "--num-workers", "2", "--output", str(tmp_path / "served")),
            TOY_ARM_LOG=str(tmp_path / "served.log"),
        )
    assert done.returncode == 0, done.stderr
    assert "wave" in done.stdout and "of 3" in done.stdout

    import_user_code(str(TOY_ARM))
    monkeypatch.setenv("TOY_ARM_LOG", str(tmp_path / "own.log"))
    settings = EvaluationSettings(env="toy_arm", tasks=["wave"], episodes=3, execute_steps=2, untrained=False)
    evaluate_with_controls(lambda: policy, tmp_path / "own", settings, progress=False)

    def executed(name):
        return dict(json.loads(line) for line in (tmp_path / f"{name}.log").read_text().splitlines())

    of_served, own = executed("served"), executed("own")
    assert of_served.keys() == own.keys() and len(own) == 3
    for seed, actions in own.items():  # two robots at a time are predicted in one batch, which may round differently
        np.testing.assert_allclose(of_served[seed], actions, rtol=1e-5, atol=1e-6)

    def files(name):
        return {file.name for file in (tmp_path / name).iterdir() if file.is_file()}

    assert files("own") - files("served") == {"success_summary.png"}  # matplotlib is not among what the client needs
    for name in ("episodes.csv", "success_summary.csv"):
        with open(tmp_path / "served" / name) as theirs, open(tmp_path / "own" / name) as ours:
            rows = [
                [{k: v for k, v in row.items() if k != "policy"} for row in csv.DictReader(f)] for f in (theirs, ours)
            ]
        assert rows[0] == rows[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--env", "calvin", "--task", "chains"], "CALVIN: the module 'calvin_agent' is not installed"),
        (["--env", "metaworld", "--task", "reach"], "unknown environment 'metaworld'; possible: "),
        (["--env", "simplerenv", "--suite", "windowx"], "unknown suite 'windowx'; possible: widowx"),
        (["--env", "simplerenv"], "no tasks are given"),
        (["--env", "simplerenv", "--task", "stack_cube", "--num-videos", "1"], "videos need PyAV"),
        (["--import", "nowhere.py", "--env", "toy_arm"], "cannot import"),
    ],
)
def test_bad_input_is_one_line(site, tmp_path, arguments, message):
    done = client(site, *arguments, "--server-wait", "0", "--output", str(tmp_path / "out"))
    assert done.returncode == 2 and done.stderr.startswith("error: ") and message in done.stderr, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_no_server_is_one_line(site, tmp_path):
    done = client(
        site,
        *("--server", "ws://127.0.0.1:9", "--server-wait", "0", "--import", str(TOY_ARM)),
        *("--env", "toy_arm", "--task", "wave", "--output", str(tmp_path / "out")),
    )
    assert done.returncode == 2 and "error: no policy server at ws://127.0.0.1:9" in done.stderr
