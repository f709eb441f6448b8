"""`hf-vla convert`: both directions keep every tensor; bad input is one line and leaves nothing behind."""

import re
from pathlib import Path

import pytest
import torch
from reference_cases import base_vlm
from transformers import AutoModel, AutoProcessor

from hf_vla.commands.convert import main


@pytest.fixture(scope="module")
def native(reference) -> Path:
    return reference.run_folder("QwenPI_v3")


@pytest.fixture(scope="module")
def ours(native, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("converted") / "policy"
    main([str(native), str(folder), "--base-vlm", str(base_vlm())])
    return folder


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def tensors(folder: Path, step: int) -> dict[str, torch.Tensor]:
    return torch.load(folder / "checkpoints" / f"steps_{step}_pytorch_model.pt", weights_only=True)


def test_both_directions(native, ours, tmp_path, capsys):
    main([str(ours), str(tmp_path / "run"), "--to", "starvla", "--step", "7", "--base-vlm", str(base_vlm())])
    assert re.fullmatch(r".*run: qwen_pi_v3, [\d,]+ parameters, starvla format\n", capsys.readouterr().out)
    given, written = tensors(native, 10), tensors(tmp_path / "run", 7)
    assert given.keys() == written.keys() and all(torch.equal(given[name], written[name]) for name in given)
    # The written configuration names the backbone that was given, so that none need be named any more.
    model = AutoModel.from_pretrained(tmp_path / "run")
    assert model.config.vlm_name_or_path == str(base_vlm())
    before, after = AutoProcessor.from_pretrained(ours), AutoProcessor.from_pretrained(tmp_path / "run")
    assert before.to_dict() == after.to_dict()


def test_dtype(native, tmp_path):
    main([str(native), str(tmp_path / "half"), "--base-vlm", str(base_vlm()), "--dtype", "bfloat16"])
    assert {p.dtype for p in AutoModel.from_pretrained(tmp_path / "half", dtype="auto").parameters()} == {
        torch.bfloat16
    }


def full(folder: Path) -> Path:
    folder.mkdir()
    (folder / "precious.txt").write_text("")
    return folder


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{native}", "{tmp}/new", "--step", "3"], "--step is for --to starvla only"),
        (["{ours}", "{tmp}/new", "--to", "starvla", "--step", "-1"], "--step is -1"),
        (["{native}", "{tmp}/new", "--dtype", "float8"], "invalid choice"),
        (["{tmp}/nowhere", "{tmp}/full"], "full exists and is not empty"),  # before SRC is looked at
        (["{tmp}/nowhere", "{tmp}/new"], "no such folder"),
        (["somebody/policy", "{tmp}/new"], "no Hub repository of that name can be had"),
        (["{native}", "{tmp}/new"], "pass base_vlm="),
        (
            ["{native}", "{tmp}/new", "--base-vlm", "{vlm}", "--checkpoint", "steps_9.pt"],
            "holds no checkpoint steps_9.pt",
        ),
        (["{vlm}", "{tmp}/new"], "holds a 'qwen3_vl' model; only policies"),
        (["{ours}", "{tmp}/new", "--base-vlm", "{vlm}"], "is not a native StarVLA checkpoint"),
        (["{ours}", "{tmp}/new", "--to", "starvla", "--base-vlm", "{tmp}/nowhere"], "nowhere"),
        (["{native}", "{tmp}/new", "--to", "hf"], "invalid choice"),
        (["{native}"], "required: DST"),
    ],
)
def test_bad_input(native, ours, tmp_path, capsys, arguments, message):
    full(tmp_path / "full")
    places = {"native": native, "ours": ours, "tmp": tmp_path, "vlm": base_vlm()}
    with pytest.raises(SystemExit) as exit:
        main([argument.format(**places) for argument in arguments])
    assert exit.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: ") and message in last
    assert [path.name for path in tmp_path.iterdir()] == ["full"]
