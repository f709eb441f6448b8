"""Every page of the documentation: its Python runs, its commands are ones that the commands take, its files and links exist.

tests/test_docs.py, tests/evaluation/test_evaluation_docs.py, tests/commands/test_user_code.py and
tests/commands/test_convert_episodes.py and tests/cards/test_pushing.py run the longer guides.
"""

import argparse
import ast
import dataclasses
import functools
import importlib.util
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from served_policies import served
from tiny_policies import build, observation

import hf_vla
from hf_vla.commands import main as hf_vla_command, train as train_command
from hf_vla.commands.main import COMMANDS
from hf_vla.commands.packaged import LAUNCH_CONFIGS, names
from hf_vla.commands.parser import ArgumentParser
from hf_vla.data import DatasetMixture, LeRobotDataset
from hf_vla.evaluation import client as evaluation_client
from hf_vla.processing import backbone_families
from hf_vla.robots import robot_types
from hf_vla.training_args.arguments import VLATrainingArguments
from hf_vla.training_args.evaluation_arguments import EvaluationArguments
from hf_vla.training_args.peft import PeftArguments
from hf_vla.training_args.recipe import DataArguments, PolicyArguments

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md")) + [
    ROOT / name
    for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "client/README.md", "spaces_demo/README.md")
]
MODULES = sorted((ROOT / "src" / "hf_vla" / "commands").glob("*.py"))
# Pages whose Python other tests run.
RUN_ELSEWHERE = {
    "hub.md",
    "add_a_framework.md",
    "add_a_simulator.md",
    "evaluation.md",
    "extending.md",
    "inference.md",
    "your_dataset.md",
}


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def commands(text: str) -> list[str]:
    """The command lines of a shell block, comments and line ends joined."""
    lines = re.sub(r"\\\n\s*", " ", text).splitlines()
    lines = [re.sub(r"\s+#.*", "", line).strip() for line in lines]
    return [part.strip() for line in lines if line and not line.startswith("#") for part in line.split("&&")]


def all_commands() -> list:
    found = []
    for page in PAGES:
        found += [(page.name, line) for block in blocks(page, "bash") for line in commands(block)]
    for module in MODULES:
        text = ast.get_docstring(ast.parse(module.read_text(encoding="utf-8"))) or ""
        lines = "\n".join(
            re.findall(r"^    (hf-vla [a-z].*(?:\\\n.*)*)$", re.sub(r"\\\n\s*", " ", text), re.MULTILINE)
        )
        found += [(module.name, line) for line in commands(lines)]
    return sorted(set(found))


class Parsed(BaseException):
    """A command has read its arguments."""


@pytest.fixture
def only_parse(monkeypatch):
    """Commands end as soon as they have read their arguments."""

    def parse_args(parser, args=None, namespace=None, parse=None):
        parse(parser, args, namespace)
        raise Parsed

    for cls in (ArgumentParser, argparse.ArgumentParser):
        monkeypatch.setattr(cls, "parse_args", functools.partialmethod(parse_args, parse=cls.parse_args))

    def launch_command(launch, command):
        assert launch.launch in names(LAUNCH_CONFIGS)
        return command

    monkeypatch.setattr(train_command, "launch_command", launch_command)
    monkeypatch.setattr(train_command, "start", lambda command: train_command.main.__wrapped__(command[1:]))


def _stand_in(argument: str) -> str:
    """What exists in place of a file of the reader's."""
    return "quickstart" if argument == "RECIPE" or argument.endswith((".yaml", "/config.yaml")) else argument


@pytest.mark.parametrize(("page", "line"), all_commands(), ids=str)
def test_commands(only_parse, page, line):
    words = shlex.split(line)
    while words and "=" in words[0]:  # environment variables
        words = words[1:]
    program, *rest = words
    if program in ("srun", "torchrun"):
        assert "-m hf_vla train" in line
        program, rest = "hf-vla", words[words.index("hf_vla") + 1 :]
    if program == "hf-vla":
        assert rest[0] in COMMANDS or rest[0].startswith("-"), f"no such command: {line}"
        # Users' modules are imported, recipes read; here there are none.
        rest = rest[:1] + [_stand_in(a) if rest[0] == "train" else a for a in rest[1:]]
        while "--import" in rest:
            del rest[(at := rest.index("--import")) : at + 2]
        if rest[0].startswith("-"):
            return
        with pytest.raises(Parsed):
            hf_vla_command.main(rest)
    elif program == "hf-vla-client":
        with pytest.raises(Parsed):
            evaluation_client.main(rest)
    elif program == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert rest[0] in targets, f"the Makefile has no {rest[0]}"
    elif program in ("python", "bash") and rest[0].startswith(("benchmarks/", "docs/", "scripts/")):
        assert (ROOT / rest[0]).is_file()
    elif program == "pip":
        extras = re.findall(r"(?:hf_vla|\.)\[([\w,]+)\]", line)
        for extra in ",".join(extras).split(",") if extras else []:
            assert re.search(rf"^{extra} =$", (ROOT / "setup.cfg").read_text(), re.MULTILINE), f"no extra {extra}"
    else:  # of others
        others = (
            "./setup.sh",
            "pre-commit",
            "git",
            "cd",
            "source",
            "apt-get",
            "python",
            "bash",
            "sh",
            "pytest",
            "ssh",
            "hf",
            "chmod",
            "torchrun",
            "accelerate",
            "jupyter",
        )
        assert program in others, f"unknown program in {page}: {line}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_within_the_text(page):
    """Names and flags of commands in sentences and tables."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for span in re.findall(r"`(hf-vla [^`]+)`", text):
        words = span.replace("…", " ").split()
        if words[1].isupper() or words[1].startswith("-"):
            continue
        assert words[1] in COMMANDS, f"no such command: {span}"


def _fields() -> set[str]:
    types = (PolicyArguments, DataArguments, PeftArguments, EvaluationArguments, VLATrainingArguments)
    return {field.name for cls in types for field in dataclasses.fields(cls)} | {"base", "import"}


@pytest.mark.parametrize(
    "page", [p for p in PAGES if blocks(p, "yaml") or blocks(p, "json")], ids=lambda page: page.name
)
def test_settings(page):
    """YAML and JSON can be read; on the pages about training, they are settings of a recipe."""
    for block in blocks(page, "json"):
        json.loads(block)
    for block in blocks(page, "yaml"):
        content = yaml.safe_load(re.sub(r", …", "", block))
        if page.name in ("training.md", "co_training.md", "your_dataset.md"):
            assert set(content) <= _fields(), set(content) - _fields()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links(page):
    """Files exist, and so do the headings that anchors name."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\((?!https?:|mailto:)([^)\s]+)\)", text):
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.exists(), f"{page.name} links to {target}"
        if anchor and file.suffix == ".md":
            titles = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            anchors = {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}
            assert anchor in anchors, f"{page.name} links to {target}; {file.name} has {sorted(anchors)}"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    """A folder with a policy, as the quickstart leaves it, and pictures."""
    folder = tmp_path_factory.mktemp("pages")
    policy = build("qwen_gr00t")
    policy.save_pretrained(folder / "outputs" / "quickstart" / "policy")
    Image.fromarray(observation()["image"][0]).save(folder / "front.png")
    return folder


@pytest.fixture
def known(tiny, monkeypatch) -> dict:
    """What the pages' code takes for granted."""
    monkeypatch.chdir(tiny)
    policy, given = build("qwen_gr00t"), observation()
    image, state = given["image"][0], np.float32(given["state"])
    return {
        "hf_vla": hf_vla, "np": np, "torch": torch, "policy": policy, "processor": policy.processor, "model": policy.model,
        "front": image, "wrist": image, "image": image, "primary": image, "state": state, "observation": given,
    }  # fmt: skip


# Real names -> their stand-ins.
STAND_INS = {
    "StarVLA/Qwen3VL-PI_v3-Bridge-RT-1": "outputs/quickstart/policy",
    "StarVLA/Qwen3-VL-OFT-LIBERO-4in1": "outputs/quickstart/policy",
    "outputs/adapter": "outputs/quickstart/policy",
    '"my-policy"': '"outputs/quickstart/policy"',
    'device_map="cuda"': 'device_map="cpu"',
    "oxe_bridge": "arm",
    "np.zeros(4)": "np.zeros(2)",
}


@pytest.mark.parametrize("name", ["README.md", "quickstart.md", "concepts.md", "checkpoints.md"])
def test_python_that_predicts(known, name):
    """With a tiny policy in place of the page's."""
    page = ROOT / name if name == "README.md" else DOCS / name
    if name == "concepts.md":
        known["state"] = known["state"][None]  # one sample, given to the processor itself
    for block in blocks(page, "python"):
        for real, stand_in in STAND_INS.items():
            block = block.replace(real, stand_in)
        exec(compile(block, name, "exec"), known)
        assert np.shape(known["actions"])[-2:] == (3, 2) and np.isfinite(known["actions"]).all()


def test_python_of_real_time_chunking(known):
    block, _ = blocks(DOCS / "real_time_chunking.md", "python")  # the other one moves a robot
    block = block.replace("my-policy", "outputs/quickstart/policy").replace("chunk[8:]", "chunk[1:]")
    exec(block.replace("inference_delay=3", "inference_delay=1"), known)
    np.testing.assert_array_equal(known["chunk"][:1], known["rest"][:1])


def test_python_of_training(known):
    for block in blocks(DOCS / "training.md", "python"):
        for real, stand_in in STAND_INS.items():
            block = block.replace(real, stand_in)
        if "metaworld" in block and importlib.util.find_spec("metaworld") is None:
            # Not by importorskip: mujoco, imported before a way to render is chosen, could render nothing in later tests.
            pytest.skip("MetaWorld is not installed: pip install 'hf_vla[sim]'")
        exec(compile(block, "training.md", "exec"), known)
    assert known["policy"].config.model_type == "qwen_gr00t"


def test_python_of_data(known, dataset):
    reading, mixing, loading = blocks(DOCS / "data.md", "python")
    exec(
        reading.replace("datasets/my-robot", str(dataset)).replace('cameras=["front", "wrist"]', 'cameras=["front"]'),
        known,
    )
    assert known["item"]["action"].shape == (16, 2)
    known |= {"bridge": known["dataset"], "mine": known["dataset"]}
    head, _, rest = mixing.partition("mixture = DatasetMixture.from_name")
    exec(head, known)  # the named mixture is of datasets that are not here
    exec(rest.partition("\n")[2].replace("48_000", "20"), known)
    assert len(known["mixture"]) == 2 * len(known["dataset"])
    from hf_vla.data import VLADataCollator

    known |= {"VLADataCollator": VLADataCollator, "DataLoader": torch.utils.data.DataLoader, "epoch": 0}
    exec(loading, known | {"batch_size": 4, "first_item": 8})


def test_python_of_a_robot(known, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(robot_types, "_REGISTERED", dict(robot_types._REGISTERED))
    (record,), (block,) = blocks(DOCS / "add_a_robot.md", "yaml"), blocks(DOCS / "add_a_robot.md", "python")
    Path("my_arm.yaml").write_text(record)
    exec(block, known)


def test_python_of_a_backbone(known, monkeypatch, tmp_path):
    from tiny_vlms import write_tiny_llava

    monkeypatch.setattr(backbone_families, "_FAMILIES", dict(backbone_families._FAMILIES))
    (block,) = blocks(DOCS / "add_a_backbone.md", "python")
    exec(block, known)
    arm = {"min": [-1.0] * 2, "max": [1.0] * 2}
    model, processor = hf_vla.QwenOFTForActionPrediction.from_vlm(
        write_tiny_llava(tmp_path), random_init=True, action_dim=2, state_dim=0, action_horizon=2,
        statistics={"arm": {"action": arm}}, normalization_modes={"arm": {"action": "min_max"}},
    )  # fmt: skip
    inputs = processor(images=[[known["front"]]], text=["go"], return_tensors="pt")
    assert model.predict_action(**inputs).shape == (1, 2, 2)


def test_python_of_a_training_strategy(known, dataset, monkeypatch, tmp_path):
    """The weights reach the loss, the penalty holds the weights, and a policy comes out."""
    from tiny_vlms import write_tiny_vlm

    monkeypatch.chdir(tmp_path)
    weigh, penalise, run = blocks(DOCS / "add_a_training_strategy.md", "python")
    exec(weigh, known)
    exec(penalise, known)
    known["dataset"] = LeRobotDataset(dataset, action_horizon=4)
    known["mixture"] = DatasetMixture([known["dataset"]])
    weights = {float(known["TrustLater"](known["mixture"], known["dataset"])[i]["sample_weight"]) for i in range(24)}
    assert weights == {0.5, 1.0}
    exec(run.replace("Qwen/Qwen3-VL-4B-Instruct", str(write_tiny_vlm(tmp_path / "vlm"))), known)
    assert known["trainer"].start and (tmp_path / "outputs" / "near" / "model.safetensors").is_file()


def test_python_of_serving(known):
    """A served policy, and the page's client."""
    (block,) = blocks(DOCS / "server.md", "python")
    with served(known["policy"]) as address:
        host, _, port = address.removeprefix("ws://").partition(":")
        exec(block.replace('"gpu-machine", 10093', f"{host!r}, {port}"), known)
        known["client"].close()
    assert known["actions"].shape == (3, 2)


def test_every_page_with_python_is_run():
    run = set(re.findall(r'DOCS / "([\w]+\.md)"', Path(__file__).read_text())) | RUN_ELSEWHERE
    run |= {"README.md", "quickstart.md", "concepts.md", "checkpoints.md"}
    assert {page.name for page in PAGES if blocks(page, "python")} <= run
