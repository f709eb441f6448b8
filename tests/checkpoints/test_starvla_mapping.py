"""A framework of a user's that StarVLA, or a fork of it, has too: registered with its mapping, it is native like ours."""

import pytest
import torch
from reference_cases import base_vlm
from transformers import AutoModel, AutoProcessor

from hf_vla import QwenOFTConfig, QwenOFTForActionPrediction, QwenOFTProcessor, register_framework, registry
from hf_vla.checkpoints import open_checkpoint
from hf_vla.checkpoints.starvla_mapping import StarVLAMapping
from hf_vla.checkpoints.starvla_writer import save_repository
from hf_vla.modeling.qwen_oft.starvla_qwen_oft import QwenOFTMapping

OF_BRIDGE = {name: {"q01": [-1.0] * dim, "q99": [1.0] * dim} for name, dim in (("action", 7), ("state", 8))}


class ForkedConfig(QwenOFTConfig):
    model_type = "forked_oft"
    gain: float = 1.0


class ForkedForActionPrediction(QwenOFTForActionPrediction):
    config_class = ForkedConfig


class ForkedProcessor(QwenOFTProcessor):
    pass


class ForkedMapping(QwenOFTMapping):
    names = ("ForkedOFT",)
    prefixes = {"regressor.": "action_head."}
    leaves = {"framework.action_model.gain": (float | int | None, "a number")}

    def to_config(self, tree):
        return super().to_config(tree) | {"gain": float(tree["framework"]["action_model"].get("gain", 1.0))}

    def action_model(self, config):
        return super().action_model(config) | {"gain": config.gain}


@pytest.fixture
def registered(monkeypatch):
    monkeypatch.setattr(registry, "_REGISTERED", {})
    parts = (ForkedConfig, ForkedForActionPrediction, ForkedProcessor)
    register_framework("forked_oft", *parts, starvla=ForkedMapping())


def build(**fields):
    fields |= {"image_size": [64, 64], "action_horizon": 3, "statistics": {"oxe_bridge": OF_BRIDGE}}
    return ForkedForActionPrediction.from_vlm(base_vlm(), random_init=True, **fields)


def test_a_registered_framework_is_written_and_read(registered, tmp_path):
    policy, processor = build(gain=2.5)
    folder = save_repository(policy, processor, tmp_path / "run")
    names = set(torch.load(folder / "checkpoints" / "steps_0_pytorch_model.pt"))
    assert any(name.startswith("regressor.fc1.") for name in names)
    assert all(name.startswith(("regressor.", "qwen_vl_interface.model.")) for name in names)
    assert open_checkpoint(folder).model_type == "forked_oft"
    again = AutoModel.from_pretrained(folder)
    assert type(again) is ForkedForActionPrediction and again.config.gain == 2.5
    assert all(torch.equal(x, policy.state_dict()[name]) for name, x in again.state_dict().items())
    assert type(AutoProcessor.from_pretrained(folder)) is ForkedProcessor
    (folder / "config.full.yaml").write_text(
        (folder / "config.full.yaml").read_text().replace("gain: 2.5", "gain: much")
    )
    with pytest.raises(OSError, match="gain is 'much' in .*; it must be a number"):
        AutoModel.from_pretrained(folder)


def test_a_name_is_mapped_once(registered):
    class Taken(StarVLAMapping):
        names = ("QwenOFT",)

    class OtherConfig(QwenOFTConfig):
        model_type = "other_oft"

    class Other(QwenOFTForActionPrediction):
        config_class = OtherConfig

    with pytest.raises(ValueError, match="StarVLA's framework 'QwenOFT' is mapped already, to 'qwen_oft'"):
        register_framework("other_oft", OtherConfig, Other, ForkedProcessor, starvla=Taken())
    with pytest.raises(TypeError, match="starvla is <class .*; give an instance of .*StarVLAMapping"):
        register_framework("other_oft", OtherConfig, Other, ForkedProcessor, starvla=Taken)


def test_a_framework_that_starvla_does_not_have():
    with pytest.raises(ValueError, match="StarVLA has no framework for 'forked_oft'; it has one for qwen_pi_v3"):
        registry.starvla_mapping("forked_oft")
