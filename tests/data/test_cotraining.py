"""From LLaVA's JSON to the language-model loss of a policy, in a loader of its own."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from hf_vla import QwenPIV3ForActionPrediction
from hf_vla.data import LlavaDataset, VLMDataCollator

TURNS = [
    {"from": "human", "value": "<image>\nwhat is on the table"},
    {"from": "gpt", "value": "a red block"},
    {"from": "human", "value": "and where"},
    {"from": "gpt", "value": "left"},
]


@pytest.fixture(scope="module")
def policy_and_processor(shared_dir):
    torch.manual_seed(0)
    base = shared_dir / "golden" / "base_vlms" / "Qwen3-VL-4B-Instruct"
    return QwenPIV3ForActionPrediction.from_vlm(base, random_init=True, action_hidden_size=16, attention_head_dim=8)


@pytest.fixture
def dataset(tmp_path) -> LlavaDataset:
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (64, 96, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    records = [
        {"image": "a.png", "conversations": TURNS},
        {"conversations": [{"from": "human", "value": "say yes"}, {"from": "gpt", "value": "yes"}]},
    ]
    (tmp_path / "data.json").write_text(json.dumps(records))
    return LlavaDataset(tmp_path / "data.json")


def learnt(processor, batch, row: int) -> str:
    labels = batch["labels"][row]
    return processor.tokenizer.decode(labels[labels != -100])


def test_labels_are_the_assistants_turns(policy_and_processor, dataset):
    processor = policy_and_processor[1]
    batch = VLMDataCollator(processor)([dataset[0], dataset[1]])
    assert learnt(processor, batch, 0) == "a red block<|im_end|>\nleft<|im_end|>\n"
    assert learnt(processor, batch, 1) == "yes<|im_end|>\n"
    counted = batch["labels"] != -100
    assert (batch["labels"][counted] == batch["input_ids"][counted]).all()
    assert not batch["attention_mask"][1, 0] and batch["attention_mask"][0].all()  # padded on the left


def test_loss_has_a_gradient_and_padding_changes_nothing(policy_and_processor, dataset):
    policy, processor = policy_and_processor
    collate = VLMDataCollator(processor)
    both = [policy(**collate([dataset[i]])).vlm_loss for i in (0, 1)]
    counts = [(collate([dataset[i]])["labels"] != -100).sum() for i in (0, 1)]
    together = policy(**collate([dataset[0], dataset[1]]))
    expected = sum(loss * n for loss, n in zip(both, counts, strict=True)) / sum(counts)
    assert together.loss.item() == pytest.approx(expected.item(), abs=1e-5)
    together.loss.backward()
    assert policy.vlm.get_input_embeddings().weight.grad.abs().sum() > 0


def test_a_loader_of_its_own_with_workers(policy_and_processor, dataset):
    loader = torch.utils.data.DataLoader(
        dataset, batch_size=2, collate_fn=VLMDataCollator(policy_and_processor[1]), num_workers=1
    )
    (batch,) = list(loader)
    assert batch["labels"].shape == batch["input_ids"].shape


def test_a_conversation_without_an_answer_is_an_error(policy_and_processor, dataset):
    item = dataset[0] | {"messages": dataset[0]["messages"][:1]}
    with pytest.raises(ValueError, match="needs turns of the assistant"):
        VLMDataCollator(policy_and_processor[1])([item])
