"""Exported policies: the network predicts what the policy does, on ONNX Runtime and by `torch.export`; its folder says what it takes."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from reference_cases import base_vlm
from tiny_policies import ACTION_DIM, HORIZON, OWN, build, observation
from tiny_vlms import write_tiny_vlm

from hf_vla.commands.main import main
from hf_vla.evaluation.rollout import policy_identity
from hf_vla.inference.export import export_policy, static_prediction
from hf_vla.inference.exported import ExportedModel, load_exported

pytestmark = pytest.mark.slow
QWEN25 = "Qwen2.5-VL-3B-Instruct"
VIEWS = [(96, 64), (64, 96)]
SHORT, LONG = "shut it", "put the red block on the green plate"


def views_of(policy) -> dict:
    given = observation()
    return given if policy.model.config.state_input == "head" else {**given, "state": None}


@pytest.mark.parametrize(
    ("framework", "family"), [(name, None) for name in OWN if name != "qwen_fast"] + [("qwen_pi_v3", QWEN25)]
)
def test_every_framework_is_one_exported_graph(framework, family):
    """For prompts of several lengths."""
    policy = build(framework, base_vlm(family) if family else None)
    long, short = ({**views_of(policy), "lang": text} for text in (LONG, SHORT))
    network, tensors, about = static_prediction(policy, policy.model_inputs([long]), num_inference_steps=None)
    program = torch.export.export(network, tuple(tensors.values()), strict=False).module()
    model = object.__new__(ExportedModel)
    model.about, model._run = about, lambda inputs: program(*map(torch.from_numpy, inputs.values())).detach().numpy()
    noise = tensors["noise"] if about["noise"] == "normal" else None
    for given in (long, short):
        inputs = policy.model_inputs([given])
        generator = torch.Generator().manual_seed(0)
        if given is short and about["attends_padding"]:
            with pytest.raises(ValueError, match="this was exported for prompts of exactly"):
                model.predict_action(**inputs, noise=noise)
            continue
        found = model.predict_action(**inputs, noise=noise, generator=generator)
        if about["noise"] == "uniform":  # which are drawn from the noise elsewhere
            assert found.shape == (1, HORIZON, ACTION_DIM)
            continue
        expected = policy.model.predict_action(**inputs, noise=noise)
        assert torch.allclose(found, expected, atol=1e-5)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """PI_v3 in both formats, by the command."""
    onnx_installed()
    folder = tmp_path_factory.mktemp("exported")
    build("qwen_pi_v3").save_pretrained(folder / "policy")
    command = ["export", str(folder / "policy"), str(folder / "out"), "--views", "2", "--num-inference-steps", "2"]
    assert main([*command, "--instruction", LONG]) == 0
    return folder / "out"


def onnx_installed():
    for name in ("onnxruntime", "onnxscript"):
        pytest.importorskip(name, reason="the extra export is not installed: pip install 'hf_vla[export]'")


@pytest.mark.parametrize("format", ["onnx", "pt2"])
def test_observations_in_robot_units_out(exported, format):
    policy, loaded = build("qwen_pi_v3"), load_exported(exported, format=format)
    given = {
        "image": [np.full((h, w, 3), 90, np.uint8) for w, h in [(224, 224)] * 2],
        "lang": SHORT,
    }
    expected = policy.infer(given, num_inference_steps=2, seed=3)
    np.testing.assert_allclose(loaded.infer(given, seed=3), expected, atol=1e-4)
    assert policy_identity(loaded)["fingerprint"] == policy.fingerprint
    with pytest.raises(ValueError, match="an exported policy has no weights that could be drawn anew"):
        loaded.untrained()
    with pytest.raises(ValueError, match="an exported policy has no trace"):
        loaded.predict(given, trace=True)
    text = (Path(__file__).resolve().parents[2] / "docs" / "inference.md").read_text()
    (block,) = (each for each in re.findall(r"^```python\n(.*?)^```$", text, re.M | re.S) if "load_exported" in each)
    names = {"observation": given}
    exec(block.replace('"exported"', f"{str(exported)!r}, format={format!r}"), names)
    np.testing.assert_array_equal(names["actions"], loaded.infer(given, seed=0))
    with pytest.raises(ValueError, match="this was exported for 1 in each call"):
        loaded.infer([given, given])
    with pytest.raises(ValueError, match="num_inference_steps is 7; this was exported with 2"):
        loaded.infer(given, num_inference_steps=7)
    with pytest.raises(ValueError, match="images of the same sizes"):
        loaded.infer({**given, "image": given["image"][:1]})
    with pytest.raises(ValueError, match="a prompt has .* tokens; this was exported for prompts of at most"):
        loaded.infer({**given, "lang": " ".join([LONG] * 9)})


def test_the_folder_says_what_it_takes(exported, monkeypatch, capsys):
    about = json.loads((exported / "export.json").read_text())
    assert about["inputs"]["noise"]["shape"] == [1, HORIZON, ACTION_DIM]
    assert max(about["largest_difference"].values()) < 1e-4
    monkeypatch.chdir(exported)
    code = (exported / "README.md").read_text().split("```python\n")[1].split("```")[0]
    exec(code, {})
    assert float(capsys.readouterr().out) < 1e-4
    model = ExportedModel(exported, "pt2")
    example = dict(np.load(exported / "example.npz"))
    with pytest.raises(ValueError, match="noise is float64"):
        model.run(example | {"noise": example["noise"].astype(np.float64)})
    with pytest.raises(ValueError, match="the input noise is missing"):
        model.run({name: x for name, x in example.items() if name != "noise"})


def test_what_cannot_be_exported(tmp_path):
    with pytest.raises(ValueError, match="QwenFAST.* can't be exported: it writes its actions token by token"):
        export_policy(build("qwen_fast"), tmp_path / "out", ["pt2"])
    with pytest.raises(ValueError, match="can't be exported: its model type is"):
        export_policy(build("qwen_oft", write_tiny_vlm(tmp_path / "vlm")), tmp_path / "out", ["pt2"])
    guided = SimpleNamespace(model=build("qwen_pi_v3").model, guiding={"guidance": 2.0})
    with pytest.raises(ValueError, match="can't be exported: it is guided, by two prompts; load it with guidance=1"):
        export_policy(guided, tmp_path / "out", ["pt2"])
    with pytest.raises(ValueError, match="unknown formats tflite; possible: onnx, pt2"):
        export_policy(build("qwen_oft"), tmp_path / "out", ["tflite"])
    assert not (tmp_path / "out").exists()
    with pytest.raises(OSError, match=r"holds no export\.json"):
        load_exported(tmp_path)
