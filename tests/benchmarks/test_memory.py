"""docs/scaling.md's tables are what benchmarks/memory.py computes, and what it computes is what training takes."""

from pathlib import Path

import activation_memory
import memory
import pytest
import torch
from full_size import QWEN3_VL_4B, batch_of, shrink

from hf_vla import QwenPIV3Config, QwenPIV3ForActionPrediction

ROOT = Path(__file__).resolve().parents[2]
OUTSIDE = ["action_head", "projectors.0", "projectors.1"]
SETUPS = {setup.name: setup for setup in memory.SETUPS}


def tiny(dtype: torch.dtype, **fields) -> QwenPIV3ForActionPrediction:
    settings = {"action_hidden_size": 32, "attention_head_dim": 16, "repeated_diffusion_steps": 4, **fields}
    config = QwenPIV3Config(vlm_config=shrink(QWEN3_VL_4B), **settings)
    return QwenPIV3ForActionPrediction._from_config(config, dtype=dtype, attn_implementation="sdpa").train()


def batch(policy, size: int = 1) -> dict:
    config = policy.config
    actions = torch.randn(size, config.action_horizon, config.action_dim)
    return {**batch_of(size, torch.device("cpu"), policy.dtype), "actions": actions}


def test_the_documents_tables():
    document = (ROOT / "docs" / "scaling.md").read_text()
    for table in memory.tables().split("\n\n"):
        assert table in document, f"docs/scaling.md lacks this table; run benchmarks/memory.py:\n{table}"


def test_the_full_size():
    sizes = memory.Sizes.of(memory.full_size())
    assert (sizes.backbone, sizes.head) == (4_437_815_808, 538_678_305 + 94_593_024)
    assert sizes.lora == 36 * 16 * ((2560 + 4096) * 2 + (2560 + 1024) * 2 + (2560 + 9728) * 3)


@pytest.mark.parametrize(
    "name",
    [
        "everything, DDP",
        "everything in bfloat16, DDP",
        "LoRA (r=16), DDP",
        "LoRA (r=16) in bfloat16, DDP",
        "backbone frozen, DDP",
        "backbone frozen, in bfloat16, DDP",
    ],
)
def test_static_bytes_are_those_of_a_step(name):
    setup = SETUPS[name]
    policy = tiny(torch.float32 if setup.weights == 4 else torch.bfloat16)
    expected = memory.static_bytes(setup, memory.Sizes.of(policy))
    inputs = batch(policy)
    if setup.trained == "head":
        policy.vlm.requires_grad_(False)
    elif setup.trained == "lora":
        from peft import LoraConfig, get_peft_model

        decoder = r"vlm\.model\.language_model\..*_proj"
        policy = get_peft_model(policy, LoraConfig(r=16, target_modules=decoder, modules_to_save=OUTSIDE))
    trained = [p for p in policy.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained)
    policy(**inputs).loss.backward()
    for p in trained:  # some have no part in this loss; in training, all take what is counted
        p.grad = torch.zeros_like(p) if p.grad is None else p.grad
    optimizer.step()
    states = [x for state in optimizer.state.values() for name, x in state.items() if name != "step"]
    assert expected == {
        "weights": sum(p.nbytes for p in policy.parameters()),
        "gradients": sum(p.grad.nbytes for p in trained),
        "states": sum(x.nbytes for x in states),
    }


def test_what_is_split_is_divided_by_the_gpus():
    sizes = memory.Sizes(backbone=900, head=100, lora=10, outside=50, block=20)
    assert memory.static_bytes(SETUPS["everything, FSDP2"], sizes, 4) == {
        "weights": 1000.0,
        "gradients": 1000.0,
        "states": 2000.0,
    }
    zero2 = memory.static_bytes(SETUPS["everything, ZeRO-2"], sizes, 4)
    assert zero2 == {"weights": 2000, "gradients": 500.0, "states": 3000.0}
    assert not any(memory.static_bytes(SETUPS["everything, ZeRO-3 offloaded"], sizes, 4).values())


@pytest.mark.parametrize("backbone", [True, False])
def test_activations_are_about_what_autograd_saves(backbone):
    """In bfloat16, of a whole forward pass on the CPU. Masks and merger are small beside blocks; pixels are at full size."""
    policy = tiny(torch.bfloat16)
    policy.vlm.requires_grad_(backbone)
    inputs = batch(policy, 4)
    real = activation_memory.saved_bytes(policy, lambda: policy(**inputs), autocast=False) / 4
    real -= inputs["pixel_values"].nbytes / 4 if backbone else 0
    with torch.device("meta"):
        shape = tiny(torch.bfloat16)
    estimate = activation_memory.activations(shape, 1, 60, autocast=False, backbone=backbone)
    assert estimate.whole == pytest.approx(real, rel=0.15)
    assert estimate.checkpointed < estimate.whole
