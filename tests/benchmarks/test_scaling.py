"""The counts of `benchmarks/scaling.py`: what a prediction costs, found without computing it."""

import pytest
import torch
from counting import count, static_prediction
from full_size import QWEN3_VL_4B, shrink
from scaling import Case, build, inputs_of, training_step

pytestmark = pytest.mark.slow
OWN = {"action_hidden_size": 32, "attention_head_dim": 16}


@pytest.fixture(scope="module")
def model():
    return build(shrink(QWEN3_VL_4B), Case(), "meta", torch.bfloat16, **OWN)


def counted(model, steps: int = 4, **sizes):
    return count(model, static_prediction(model, inputs_of(Case(**sizes)), steps))


def test_each_step_reads_the_head_again(model):
    two, three = counted(model, 2), counted(model, 3)
    blocks = model.action_head.transformer.transformer_blocks
    per_step = [
        p
        for block in blocks
        for n, p in block.named_parameters()
        if not n.startswith(("norm1", "attn1.to_k", "attn1.to_v"))
    ]
    per_step += [*model.action_head.action_encoder.parameters(), *model.action_head.action_decoder.parameters()]
    positions = 2 * 16 * 32  # of the table, the rows of the chunk
    assert three.weight_bytes - two.weight_bytes == 2 * sum(p.numel() for p in per_step) + positions


def test_a_batch_reads_the_same_weights(model):
    one, four = counted(model), counted(model, batch=4)
    assert four.launches == one.launches
    assert 3.9 < four.flops / one.flops <= 4
    looked_up = (
        64 * len(inputs_of(Case())["input_ids"][0]) + 32 * 4 * 196
    )  # of tokens; of positions, four for each patch
    assert four.weight_bytes - one.weight_bytes == 3 * 2 * looked_up


def test_what_is_counted_is_what_runs():
    """The same on the meta device as where numbers are computed."""
    there, here = (build(shrink(QWEN3_VL_4B), Case(), device, torch.float32, **OWN) for device in ("meta", "cpu"))
    assert counted(there).flops == counted(here).flops
    assert count(there, training_step(there, Case(), 2)).flops == count(here, training_step(here, Case(), 2)).flops
