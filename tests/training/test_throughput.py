"""The speed that a run logs, and the floating-point operations that it is counted from."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from reference_cases import base_vlm
from resume_runs import trainer_for
from tiny_policies import ACTION_DIM, HORIZON, OWN, build, observation
from torch.utils.flop_counter import FlopCounterMode

from hf_vla.training import throughput
from hf_vla.training.flops import Shapes, peak_flops, shapes_of, training_flops
from hf_vla.training.lora import add_adapter
from hf_vla.training.parameter_groups import freeze
from hf_vla.training.throughput import PHASES, PhaseClock
from hf_vla.training_args.peft import PeftArguments

QWEN3, QWEN25 = "Qwen3-VL-4B-Instruct", "Qwen2.5-VL-3B-Instruct"
CASES = [(name, QWEN3) for name in OWN] + [("qwen_pi_v3", QWEN25), ("qwen_oft", QWEN25)]


@torch.backends.mkldnn.flags(enabled=False)  # whose products are not counted
def counted(model, inputs) -> int:
    """By torch, in a forward and a backward pass, without the language model's last layers if no framework reads them."""
    with FlopCounterMode(display=False) as counter:
        model(**inputs).loss.backward()
    model.zero_grad(set_to_none=True)
    with FlopCounterMode(display=False) as forward, torch.no_grad():
        model(**inputs)
    of_modules = {name.partition(".")[2]: sum(flops.values()) for name, flops in forward.get_flop_counts().items()}
    unread = {
        "qwen_pi": ["3"],  # the last block attends its own tokens
        "qwen_discrete_diffusion": ["3"],
        "qwen_adapter": ["3"],  # it has three blocks
    }.get(model.config.model_type, [])
    return counter.get_total_flops() - sum(of_modules[f"vlm.model.language_model.layers.{i}"] for i in unread)


def tiny(framework, family):
    """A policy with attention in plain torch, of which torch counts every product, and two samples of different lengths."""
    policy, first = build(framework, base_vlm(family)), observation()
    model = copy.deepcopy(policy.model)
    model.set_attn_implementation("eager")
    if policy.denoises:
        model.config.repeated_diffusion_steps = 2
    inputs = policy.processor(
        images=[first["image"]] * 2,
        text=[first["lang"], "put the red block on the plate"],
        state=np.array([first["state"], [0.1, 2.5]]),
        actions=np.random.default_rng(0).uniform(2, 3, (2, HORIZON, ACTION_DIM)),
    )
    return model, dict(inputs)


@pytest.mark.parametrize(("framework", "family"), CASES)
def test_operations_are_those_that_torch_counts(framework, family):
    model, inputs = tiny(framework, family)
    assert training_flops(model, shapes_of(inputs)) == pytest.approx(counted(model, inputs), rel=0.03)


@pytest.mark.parametrize("frozen", ["^vlm", "visual", "^action_head"])
def test_what_is_frozen_has_no_gradient_to_compute(frozen):
    model, inputs = tiny("qwen_pi_v3", QWEN3)
    freeze(model, [frozen])
    assert training_flops(model, shapes_of(inputs)) == pytest.approx(counted(model, inputs), rel=0.03)


def test_an_adapter_and_what_is_trained_beside_it_count_too():
    model, inputs = tiny("qwen_pi_v3", QWEN3)
    base = SimpleNamespace(policy="tiny", base_vlm=None)
    model = add_adapter(model, base, PeftArguments(use_peft=True, lora_r=8))
    assert training_flops(model, shapes_of(inputs)) == pytest.approx(counted(model, inputs), rel=0.03)


def test_conversations_count_too():
    model, inputs = tiny("qwen_oft", QWEN3)
    turns = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "open the drawer"}]}]
    conversation = [*turns, {"role": "assistant", "content": "open the drawer"}]
    image = Image.fromarray(observation()["image"][0])
    conversations = dict(build("qwen_oft").processor.encode_conversations([[image]], [conversation]))
    both = training_flops(model, shapes_of(inputs), shapes_of(conversations))
    assert both == pytest.approx(counted(model, {**inputs, "vlm_batch": conversations}), rel=0.03)


def test_frameworks_that_are_not_known_have_no_count():
    model, inputs = tiny("qwen_oft", QWEN3)
    model.action_head = torch.nn.Linear(2, 2)
    assert training_flops(model, shapes_of(inputs)) is None
    assert training_flops(torch.nn.Linear(2, 2), Shapes(1, 1)) is None


@pytest.mark.parametrize(
    ("name", "dtype", "tf32", "expected"),
    [
        ("NVIDIA H100 80GB HBM3", torch.bfloat16, False, 989e12),
        ("NVIDIA H100 PCIe", torch.bfloat16, False, 756e12),
        ("NVIDIA A100-SXM4-80GB", torch.float32, True, 156e12),
        ("NVIDIA A10G", torch.float16, False, 70e12),
        ("NVIDIA GeForce RTX 4090", torch.float32, False, 83e12),
        ("Some other card", torch.bfloat16, False, None),
    ],
)
def test_peaks_by_name(name, dtype, tf32, expected):
    assert peak_flops(name, dtype, tf32) == expected


def test_phases_follow_each_other(monkeypatch):
    moments = iter([1.0, 3.0, 6.0, 10.0, 15.0])
    monkeypatch.setattr(throughput.time, "perf_counter", lambda: next(moments))
    clock = PhaseClock(torch.device("cpu"))
    for phase in ("data", "forward", "data", None):
        clock.start(phase)
    assert clock.take() == {"data": 2 + 4, "forward": 3} and not clock.take()


def test_spans_do_not_pile_up_if_nothing_is_logged(monkeypatch):
    monkeypatch.setattr(PhaseClock, "MOST_SPANS", 2)
    moments = iter(range(100))
    monkeypatch.setattr(throughput.time, "perf_counter", lambda: next(moments))
    clock = PhaseClock(torch.device("cpu"))
    for _ in range(99):
        clock.start("forward")
    assert len(clock._spans) == 2 and clock.take() == {"forward": 98}


def test_every_log_has_the_speed(settings, tmp_path, monkeypatch):
    trainer = trainer_for(settings, tmp_path / "run", "--max_steps", 4, "--save_steps", 2, "--logging_steps", 2)
    said = []
    monkeypatch.setattr(throughput.logger, "info", said.append)
    trainer.train()
    rows = [row for row in trainer.state.log_history if "loss" in row]
    assert len(rows) == 2
    for row in rows:
        assert all(row[f"time/{phase}"] >= 0 for phase in PHASES) and row["time/backward"] > 0
        per_step = sum(row[f"time/{phase}"] for phase in PHASES)
        assert row["samples_per_second"] == pytest.approx(trainer.args.train_batch_size / per_step)
        assert row["tokens_per_second"] > row["samples_per_second"] and row["peak_memory_gib"] > 0
        assert "mfu" not in row
    assert said == ["no MFU is logged: the peak FLOP/s of the CPU are not known"]
    inputs = next(iter(trainer.get_train_dataloader()))
    assert trainer.state.total_flos == pytest.approx(4 * training_flops(trainer.model, shapes_of(inputs)))
