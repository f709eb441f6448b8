"""From LLaVA's JSON to the language-model loss of a policy, in a loader of its own or beside robot samples."""

import json

import numpy as np
import pytest
import torch
from accelerate.data_loader import prepare_data_loader
from PIL import Image
from reference_cases import base_vlm
from torch.utils.data import DataLoader, Dataset

from hf_vla import QwenPIV3ForActionPrediction
from hf_vla.data import CoTrainingCollator, CoTrainingDataset, DatasetMixture, LlavaDataset, VLMDataCollator

TURNS = [
    {"from": "human", "value": "<image>\nwhat is on the table"},
    {"from": "gpt", "value": "a red block"},
    {"from": "human", "value": "and where"},
    {"from": "gpt", "value": "left"},
]


@pytest.fixture(scope="module")
def policy_and_processor():
    torch.manual_seed(0)
    return QwenPIV3ForActionPrediction.from_vlm(
        base_vlm(), random_init=True, action_hidden_size=16, attention_head_dim=8
    )


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


class Items(Dataset):
    """Robot samples that tell which they are."""

    action_horizon, action_dim, state_dim, num_episodes, key = 4, 2, None, 1, "robot"

    def __init__(self, size: int):
        self.size = size

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        return {"index": index}


class Conversations(Dataset):
    """Conversations that are numbers; some can't be read."""

    def __init__(self, start: int, stop: int, on_error: str = "raise", broken: tuple[int, ...] = ()):
        self.numbers, self.on_error, self.broken = range(start, stop), on_error, broken

    def __len__(self):
        return len(self.numbers)

    def __getitem__(self, index):
        if self.numbers[index] in self.broken:
            raise OSError(f"{self.numbers[index]} is broken")
        return self.numbers[index]


def stream(size: int = 20, vla: int = 4, vlm: int = 3, *, seed: int = 0, members=None) -> CoTrainingDataset:
    members = [Conversations(0, 5), Conversations(5, 7)] if members is None else members
    return CoTrainingDataset(DatasetMixture([Items(size)], seed=seed), members, vla, vlm)


def said(dataset: CoTrainingDataset, indices) -> list[int]:
    return [number for index in indices for number in dataset[index]["conversations"]]


@pytest.mark.parametrize(("vla", "vlm"), [(4, 4), (4, 3), (4, 1), (4, 8), (3, 5), (1, 2)])
def test_every_batch_has_its_conversations(vla, vlm):
    dataset = stream(24, vla, vlm)
    for start in range(0, 24 - vla, vla):
        assert len(said(dataset, range(start, start + vla))) == vlm
    assert all(said(dataset, [start]) for start in range(0, 24, vla)), "a batch cut short would be without"


def test_conversations_are_gone_through_by_turns_in_ever_new_orders():
    dataset = stream()
    heard = []
    for epoch in range(4):  # 15 conversations an epoch
        dataset.set_epoch(epoch)
        heard += said(dataset, range(20))
    turns = [heard[i : i + 7] for i in range(0, 56, 7)]
    assert all(sorted(turn) == list(range(7)) for turn in turns)
    assert len({tuple(turn) for turn in turns}) == len(turns)
    assert said(stream(seed=1), range(20)) != heard[:15]
    again = stream()
    again.set_epoch(2)
    assert said(again, range(8, 20)) == heard[36:45], "resumed in the middle of an epoch"


def test_the_stream_is_the_same_under_workers_and_processes():
    dataset = stream()
    expected = [said(dataset, range(start, start + 4)) for start in range(0, 20, 4)]

    def numbers(items):
        return [number for item in items for number in item["conversations"]]

    loader = DataLoader(dataset, batch_size=4, collate_fn=numbers, num_workers=1)
    assert list(loader) == expected
    ranks = [
        list(prepare_data_loader(loader, num_processes=2, process_index=rank, put_on_device=False)) for rank in (0, 1)
    ]
    living_on = DataLoader(dataset, batch_size=4, collate_fn=numbers, num_workers=1, persistent_workers=True)
    for epoch in (0, 1):
        dataset.set_epoch(epoch)
        assert list(living_on) == [said(dataset, range(start, start + 4)) for start in range(0, 20, 4)]
    assert ranks[0] == expected[0::2] and ranks[1][:2] == expected[1::2] and ranks[1][2], "5 batches for 2 processes"


def test_a_broken_conversation(caplog):
    with pytest.raises(OSError, match="3 is broken"):
        said(stream(members=[Conversations(0, 5, broken=(3,))]), range(20))
    read = stream(members=[Conversations(0, 5, "skip", broken=(3,))])
    heard = said(read, range(20))
    assert read.mixture.num_skipped == caplog.text.count("skipped conversation 3")
    assert set(heard) == {0, 1, 2, 4} and len(heard) == 15
    assert "skipped conversation 3: 3 is broken" in caplog.text
    with pytest.raises(OSError, match="100 conversations in a row"):
        said(stream(members=[Conversations(0, 3, "skip", broken=(0, 1, 2))]), [0])


def test_what_a_dataset_is_does_not_depend_on_the_number_of_processes():
    assert stream(20, 4, 2).identity == stream(20, 2, 1).identity
    assert stream(20, 4, 2).identity != stream(20, 4, 3).identity
    assert said(stream(20, 4, 2), range(20)) == said(stream(20, 2, 1), range(20))


def test_where_an_item_comes_from(dataset):
    robots = Items(20)
    robots.sample_id = lambda index: {"dataset": "robot", "frame": index}
    both = CoTrainingDataset(DatasetMixture([robots]), [dataset], 1, 2)
    found = both.sample_id(3)
    assert found["frame"] == both.mixture.draw(3)[1]
    items = [dataset[number] for name, number in found["conversations"] if name == "data"]
    assert [item["messages"] for item in items] == [item["messages"] for item in both[3]["conversations"]]


def test_what_can_not_be_co_trained():
    with pytest.raises(ValueError, match="order of a DatasetMixture, not from a Items"):
        CoTrainingDataset(Items(3), [Conversations(0, 2)], 1, 1)
    with pytest.raises(ValueError, match="at least one dataset of conversations"):
        stream(members=[])
    with pytest.raises(ValueError, match="vlm_batch_size is 0"):
        stream(vlm=0)
    with pytest.raises(ValueError, match="object can't encode conversations"):
        CoTrainingCollator(list, object())


def test_the_collator_of_both(policy_and_processor, dataset):
    collate = CoTrainingCollator(lambda items: {"robot": len(items)}, policy_and_processor[1])
    batch = collate([{"conversations": [dataset[0]]}, {"conversations": []}])
    assert batch["robot"] == 2 and batch["vlm_batch"]["labels"].shape == batch["vlm_batch"]["input_ids"].shape
    assert type(batch) is type(batch["vlm_batch"]) is dict
    assert collate([{}, {}]) == {"robot": 2}, "evaluation has no conversations"


def test_texts_and_plain_conversations_are_known(dataset):
    assert list(dataset.texts()) == ["what is on the table", "a red block", "and where", "left", "say yes", "yes"]
    assert dataset.num_without_images == 1
