"""Batches whose images come as uint8 patches: a fraction of the bytes, and the same numbers once they are expanded."""

import numpy as np
import pytest
import torch
from reference_cases import base_vlm
from tiny_policies import ACTION_DIM, HORIZON, build, observation

from hf_vla.data import CoTrainingCollator, VLADataCollator
from hf_vla.training.compact_batches import compact, expanded

FAMILIES = ("Qwen3-VL-4B-Instruct", "Qwen2.5-VL-3B-Instruct")


def items(number: int) -> list[dict]:
    rng = np.random.default_rng(1)
    robot = {"lang": "open the drawer", "dataset": "arm", "state": np.array([[0.5, 3.0]], np.float32)}
    return [
        robot | {"image": observation()["image"], "action": rng.uniform(2, 3, (HORIZON, ACTION_DIM))}
        for _ in range(number)
    ]


def same(batch, other) -> bool:
    return batch.keys() == other.keys() and all(
        same(value, other[name]) if isinstance(value, dict) else torch.equal(value, other[name])
        for name, value in batch.items()
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_expanded_batches_are_the_collators_bit_for_bit(family):
    collator = VLADataCollator(build("qwen_oft", base_vlm(family)).processor)
    batch, small = collator(items(2)), compact(collator)(items(2))
    assert small["compact_pixel_values"].dtype == torch.uint8 and "pixel_values" not in small
    assert 8 * small["compact_pixel_values"].nbytes == batch["pixel_values"].nbytes
    assert same(dict(expanded(small, collator)), dict(batch))
    assert same(dict(collator(items(2))), dict(batch))  # the collator itself is as it was
    assert expanded(batch, collator) is batch


def test_conversations_too():
    processor = build("qwen_oft").processor
    turns = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "how many"}]}]
    conversation = {"image": observation()["image"][:1], "messages": [*turns, {"role": "assistant", "content": "two"}]}
    collator = CoTrainingCollator(VLADataCollator(processor), processor)
    given = [item | {"conversations": [conversation]} for item in items(2)]
    small = compact(collator)(given)
    assert "compact_pixel_values" in small["vlm_batch"]
    assert same(expanded(small, collator), collator(given))


def test_other_collators_and_families_are_left_alone():
    def collator(items):
        return {"input_ids": torch.zeros(1, 1)}

    assert compact(collator) is collator
    batch = collator(None)
    assert expanded(batch, collator) is batch
