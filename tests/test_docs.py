"""The code in the documentation runs as it stands there."""

import contextlib
import importlib.util
import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from reference_cases import base_vlm
from tiny_policies import build, observation
from tiny_vlms import write_tiny_llava, write_tiny_vlm
from transformers import AutoConfig, AutoModel, AutoProcessor

import hf_vla
from hf_vla.commands.train import main as train
from hf_vla.processing import backbone_families
from hf_vla.registry import class_of, frameworks
from hf_vla.training.run_log import read_summary
from hf_vla.training_args.recipe import PolicyArguments

DOC = Path(__file__).resolve().parents[1] / "docs" / "add_a_framework.md"
BACKBONE = '"HuggingFaceTB/SmolVLM2-256M-Video-Instruct"'
STATISTICS = {"robot": {name: {"min": [-1.0] * n, "max": [3.0] * n} for name, n in (("action", 5), ("state", 3))}}
SETTINGS = {
    "action_dim": 5,
    "state_dim": 3,
    "action_horizon": 4,
    "action_hidden_size": 32,
    "num_action_heads": 4,
    "num_action_layers": 2,
    "statistics": STATISTICS,
    "normalization_modes": {"robot": {"action": "min_max", "state": "min_max"}},
}


def code_blocks() -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", DOC.read_text(), re.MULTILINE | re.DOTALL)


def load(name: str, source: str, folder: Path):
    """A module of that source, as a user's file outside of the package."""
    file = folder / f"{name}.py"
    file.write_text(source)
    spec = importlib.util.spec_from_file_location(name, file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def smolvlm(tmp_path_factory) -> Path:
    return write_tiny_vlm(tmp_path_factory.mktemp("smolvlm"))


@pytest.fixture(scope="module")
def framework(smolvlm, tmp_path_factory):
    """The module that the document's blocks make up, run from top to bottom; its family of backbones is known as long."""
    source = "\n\n".join(code_blocks())
    assert source.count(BACKBONE) == 1
    folder = tmp_path_factory.mktemp("user")
    known = dict(backbone_families._FAMILIES)
    with contextlib.chdir(folder):
        yield load("query_regression", source.replace(BACKBONE, repr(str(smolvlm))), folder)
    backbone_families._FAMILIES = known


@pytest.fixture(params=["Qwen3-VL", "Qwen2.5-VL", "SmolVLM2", "LLaVA"])
def policy_and_processor(request, framework, smolvlm, tmp_path):
    folder = {
        "Qwen3-VL": base_vlm("Qwen3-VL-4B-Instruct"),
        "Qwen2.5-VL": base_vlm("Qwen2.5-VL-3B-Instruct"),
        "SmolVLM2": smolvlm,
        "LLaVA": write_tiny_llava(tmp_path / "llava"),
    }[request.param]
    torch.manual_seed(0)
    return framework.QueryRegressionForActionPrediction.from_vlm(folder, random_init=True, **SETTINGS)


def observations() -> dict:
    rng = np.random.default_rng(0)
    return {
        "images": [[rng.integers(0, 256, (64, 64, 3), dtype=np.uint8) for _ in range(views)] for views in (1, 2)],
        "text": ["stop", "put the red block on the green plate"],
        "state": rng.uniform(-1, 3, (2, 3)),
    }


def test_the_document_runs_from_top_to_bottom(framework):
    assert len(code_blocks()) == 7
    assert framework.normalized.shape == (1, 8, 7) and framework.normalized.isfinite().all()
    assert framework.actions.shape == (1, 8, 7) and framework.actions.dtype == np.float32
    assert (Path(framework.__file__).parent / "my-policy" / "model.safetensors").exists()


def test_the_framework_is_about_a_hundred_lines():
    model = next(block for block in code_blocks() if "ForActionPrediction(VLAPreTrainedModel)" in block)
    assert len(model.splitlines()) <= 110


def test_the_example_the_whole_way(framework, policy_and_processor, tmp_path):
    policy, processor = policy_and_processor
    batch = processor(**observations(), actions=np.ones((2, 4, 5)))
    output = policy(**batch)
    output.loss.backward()
    assert torch.equal(output.loss, output.action_loss)
    reached = {name.split(".")[0] for name, p in policy.named_parameters() if p.grad is not None and p.grad.any()}
    assert reached == {name for name, _ in policy.named_children()}

    inputs = processor(**observations())
    predicted = policy.predict_action(**inputs)
    assert torch.equal(predicted, policy.predict_action(**batch, noise=torch.zeros(2, 4, 5), num_inference_steps=2))
    assert predicted.shape == (2, 4, 5)
    for i in range(2):
        alone = processor(**{name: values[i : i + 1] for name, values in observations().items()})
        assert torch.allclose(policy.predict_action(**alone)[0], predicted[i], atol=2e-6)
    moved = processor(**{**observations(), "state": observations()["state"] + 0.5})
    assert (policy.predict_action(**moved) - predicted).abs().max() > 1e-5

    policy.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    assert type(AutoConfig.from_pretrained(tmp_path)) is framework.QueryRegressionConfig
    loaded, its_processor = AutoModel.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)
    assert type(loaded) is type(policy) and type(its_processor) is type(processor)
    assert torch.equal(loaded.predict_action(**its_processor(**observations())), predicted)
    np.testing.assert_allclose(
        its_processor.unnormalize_actions(predicted), predicted.numpy() * 2 + 1, rtol=1e-5, atol=1e-6
    )


def test_it_learns(framework, smolvlm):
    """The example is no dummy: it tells two observations apart after a few steps of its own head."""
    torch.manual_seed(0)
    policy, processor = framework.QueryRegressionForActionPrediction.from_vlm(smolvlm, **SETTINGS)
    target = np.stack([np.zeros((4, 5)), np.full((4, 5), 2.0)])
    batch = processor(**observations(), actions=target)
    head = [p for name, p in policy.named_parameters() if not name.startswith("vlm.")]
    optimizer = torch.optim.AdamW(head, lr=3e-3)
    before = policy(**batch).loss.item()
    for _ in range(40):
        optimizer.zero_grad()
        policy(**batch).loss.backward()
        optimizer.step()
    assert policy(**batch).loss.item() < before / 5


def test_the_example_has_co_training_and_sample_weights(framework, policy_and_processor):
    policy, processor = policy_and_processor
    robot = processor(**observations(), actions=np.ones((2, 4, 5)))
    turns = [[{"role": r, "content": [{"type": "text", "text": r}]} for r in ("user", "assistant")]]
    words = dict(processor.encode_conversations([[]], turns))
    alone, both = policy(**robot), policy(**robot, vlm_batch=words)
    assert torch.equal(both.loss, alone.loss + policy(**words).loss)
    second = policy(**robot, sample_weight=torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(second.loss, alone.loss_per_sample[1])
    assert policy.loss_counts({**robot, "vlm_batch": words}).keys() == {"action_loss", "vlm_loss"}


@pytest.mark.slow
def test_the_train_command_knows_the_example(framework, smolvlm, recipe, tmp_path):
    """With LoRA and co-training; what comes out is a policy as any other."""
    turns = [{"from": "human", "value": "how many"}, {"from": "gpt", "value": "three blocks"}]
    (tmp_path / "conversations.json").write_text(json.dumps([{"conversations": turns}] * 3))
    settings = yaml.safe_load(recipe.read_text()) | {
        "framework": "query_regression",
        "policy_config": {"action_horizon": 4, "action_hidden_size": 16, "num_action_layers": 1},
        "vlm_dataset": [str(tmp_path / "conversations.json")],
        "max_steps": 2,
        "base_vlm": str(smolvlm),
        "use_peft": True,
        "lora_r": 2,
    }
    del settings["vlm_config"]
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(settings))
    train([str(tmp_path / "mine.yaml"), "--import", framework.__file__])
    rows = [row for row in read_summary(tmp_path / "policy" / "summary.jsonl") if "action_loss" in row]
    assert len(rows) == 2 and all(row["action_loss"] > 0 and row["vlm_loss"] > 0 for row in rows)
    policy = hf_vla.Policy.from_pretrained(tmp_path / "policy", device="cpu")
    assert type(policy.model) is framework.QueryRegressionForActionPrediction
    image = np.zeros((32, 32, 3), np.uint8)
    prediction = policy.predict({"image": [image], "lang": "push the block", "state": np.zeros(3)})
    assert prediction.actions.shape == (1, 4, 2)
    assert set(prediction.seconds) == {"processor", "model", "unnormalize", "backbone", "action head"}


def test_a_registered_framework_is_known_to_recipes(framework):
    assert "query_regression" in frameworks()
    assert class_of("query_regression", "processor").__name__ == "QueryRegressionProcessor"
    assert PolicyArguments(framework="query_regression", base_vlm="some/backbone").framework == "query_regression"
    with pytest.raises(ValueError, match="unknown framework 'query'; known are .*query_regression"):
        PolicyArguments(framework="query", base_vlm="some/backbone")


def test_the_processor_alone_from_a_backbone(framework, smolvlm):
    processor = framework.QueryRegressionProcessor.from_vlm(smolvlm, action_dim=5)
    assert type(processor) is framework.QueryRegressionProcessor and processor.action_dim == 5


def test_a_class_that_is_defined_again_takes_the_place_of_the_older_one(framework, smolvlm, tmp_path):
    """As when a notebook's cell runs twice."""
    classes = {kind: class_of("query_regression", kind) for kind in ("config", "model", "processor")}
    newer = {
        name: type(cls.__name__, (cls,), {"__module__": cls.__module__, "__qualname__": cls.__qualname__})
        for name, cls in classes.items()
    }
    newer["model"].config_class = newer["config"]
    _, processor = classes["model"].from_vlm(smolvlm, **SETTINGS)
    processor.save_pretrained(tmp_path)
    hf_vla.register_framework("query_regression", **newer)
    try:
        assert type(AutoProcessor.from_pretrained(tmp_path)) is newer["processor"]
        assert class_of("query_regression", "model") is newer["model"]
    finally:
        hf_vla.register_framework("query_regression", **classes)
    assert type(AutoProcessor.from_pretrained(tmp_path)) is classes["processor"]


def test_the_document_on_inference(tmp_path, monkeypatch):
    """Its blocks one after the other, with a tiny policy in place of the quickstart's."""
    policy = build("qwen_gr00t")
    policy.save_pretrained(tmp_path / "policy")
    given = observation()
    front, state = given["image"][0], np.float32(given["state"])
    Image.fromarray(front).save(tmp_path / "front.png")
    monkeypatch.chdir(tmp_path)
    names = {"front": front, "state": state, "other": given, "model": policy.model}
    names["inputs"] = policy.processor(images=[front], text="go", state=state[None])
    blocks = re.findall(r"^```python\n(.*?)^```$", (DOC.parent / "inference.md").read_text(), re.MULTILINE | re.DOTALL)
    blocks = [block for block in blocks if not any(extra in block for extra in ("quantization=", "load_exported"))]
    assert len(blocks) == 4
    for block in blocks:
        exec(block.replace("outputs/quickstart/policy", str(tmp_path / "policy")), names)
    assert names["actions"].shape == (2, 3, 2) and names["prediction"].chunks.shape == (11, 8, 3, 2)


def test_a_robots_control_loop(tmp_path):
    """The block with `PolicyRunner`, on a robot that takes nine steps; the tiny policy's chunks have three actions, not sixteen."""
    policy = build("qwen_gr00t")
    policy.save_pretrained(tmp_path / "policy")
    text = (DOC.parent / "real_time_chunking.md").read_text()
    block = next(
        b for b in re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL) if "PolicyRunner" in b
    )
    sent = []
    robot = SimpleNamespace(send=sent.append, observe=observation)
    names = {"running": lambda: len(sent) < 9, "robot": robot, "rate": SimpleNamespace(sleep=lambda: None)}
    assert "execute=8" in block
    exec(block.replace('"my-policy"', repr(str(tmp_path / "policy"))).replace("execute=8", "execute=2"), names)
    assert np.stack(sent).shape == (9, 2) and np.isfinite(sent).all()
    with pytest.raises(RuntimeError, match="closed"):
        names["runner"].act(observation())


class TestBadRegistration:
    def test_a_name_that_is_taken(self, framework):
        class Taken(framework.QueryRegressionConfig):
            model_type = "qwen_oft"

        with pytest.raises(ValueError, match="'qwen_oft' is a framework of hf_vla"):
            hf_vla.register_framework("qwen_oft", Taken, None, None)
        assert AutoConfig.for_model("qwen_oft").__class__ is hf_vla.QwenOFTConfig

    def test_a_name_that_is_not_the_configurations(self, framework):
        with pytest.raises(ValueError, match="model_type"):
            hf_vla.register_framework("another", framework.QueryRegressionConfig, None, None)

    def test_widths_that_do_not_divide(self, framework):
        with pytest.raises(ValueError, match="not a multiple of num_action_heads"):
            framework.QueryRegressionConfig(action_hidden_size=30)
