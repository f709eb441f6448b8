"""Lower precision: what `quantization` does to a backbone, and how far actions move."""

import importlib.util

import numpy as np
import pytest
import torch
from tiny_policies import build, observation

from hf_vla import Policy
from hf_vla.commands.main import main
from hf_vla.inference.precision import measure_precisions

pytestmark = pytest.mark.slow
KINDS = {"int8": "Int8Tensor", "fp8": "Float8Tensor", "int4": "Params4bit"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("policy")
    build("qwen_pi_v3").save_pretrained(folder)
    return str(folder)


def torchao_installed():
    if importlib.util.find_spec("torchao") is None:
        pytest.skip("torchao is not installed: make test-torchao")


@pytest.mark.parametrize("name", KINDS)
def test_only_the_backbone_is_quantised(folder, name, tmp_path):
    if name != "int4":
        torchao_installed()
    policy = Policy.from_pretrained(folder, device="cpu", quantization=name)
    kinds = {n: type(m.weight).__name__ for n, m in policy.model.named_modules() if isinstance(m, torch.nn.Linear)}
    quantised = {n for n, kind in kinds.items() if kind == KINDS[name]}
    assert "vlm.model.language_model.layers.0.self_attn.q_proj" in quantised
    assert "vlm.model.visual.blocks.0.attn.qkv" in quantised or name == "int4"
    assert all(n.startswith("vlm.model.") for n in quantised)
    expected = build("qwen_pi_v3").infer(observation(), seed=0)
    found = policy.infer(observation(), seed=0)
    assert 0 < np.abs(found - expected).max() < 0.5
    policy.model.compile_for_inference(backend="eager")
    np.testing.assert_allclose(policy.infer(observation(), seed=0), found, atol=0.02)
    if name == "int4":
        with pytest.raises(ValueError, match="4-bit weights can't be saved from a CPU"):
            policy.save_pretrained(str(tmp_path))
    else:
        policy.save_pretrained(str(tmp_path))
        again = Policy.from_pretrained(str(tmp_path), device="cpu")
        np.testing.assert_allclose(again.infer(observation(), seed=0), found, atol=1e-5)


def test_how_far_actions_move(folder):
    float32, bfloat16, int4 = measure_precisions(folder, ["bfloat16", "int4"], repeats=1, device="cpu")
    assert (float32.name, float32.largest, float32.typical) == ("float32", 0, 0)
    for measured in (bfloat16, int4):
        assert 0 < measured.typical < measured.largest < 0.5 and measured.seconds > 0
    assert int4.weight_bytes < bfloat16.weight_bytes < 0.6 * float32.weight_bytes


def test_info_prints_it(folder, dataset, capsys):
    assert main(["info", folder, "--precisions", "bfloat16", "--device", "cpu"]) == 0
    header, float32, bfloat16 = capsys.readouterr().out.splitlines()[-3:]
    assert "largest and median difference" in header
    assert float32.split()[-2:] == ["0.0e+00,", "0.0e+00"] and bfloat16.split()[0] == "bfloat16"


def test_errors(folder, monkeypatch):
    with pytest.raises(ValueError, match="quantization is 'int9'; did you mean int8"):
        Policy.from_pretrained(folder, device="cpu", quantization="int9")
    with pytest.raises(ValueError, match="quantization_config is 'int3'; did you mean int"):
        Policy.from_pretrained(folder, device="cpu", quantization_config="int3")
    with pytest.raises(ValueError, match="unknown precision 'int16'; did you mean"):
        next(measure_precisions(folder, ["int16"]))
    with pytest.raises(ValueError, match="both given"):
        Policy.from_pretrained(folder, device="cpu", quantization="int8", quantization_config=object())
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "torchao" else found(name, *a))
    with pytest.raises(ImportError, match=r'needs torchao: pip install "hf_vla\[torchao\]"'):
        Policy.from_pretrained(folder, device="cpu", quantization="int8")
