"""`VLADataCollator`: what the processor is called with, and what becomes of the mask."""

import numpy as np
import pytest
import torch

from hf_vla.data import LeRobotDataset, VLADataCollator


class RecordingProcessor:
    """Stands in for a processor: keeps the call's arguments and returns a batch."""

    def __call__(self, **arguments):
        self.arguments = arguments
        return {"input_ids": torch.zeros(len(arguments["text"]), 3)}


def make_item(key="a", **changes):
    item = {
        "image": [f"front of {key}", f"wrist of {key}"],
        "lang": f"task of {key}",
        "action": np.full((4, 7), 2, dtype=np.float32),
        "action_mask": np.array([True, True, False, False]),
        "state": np.ones((1, 8), dtype=np.float32),
        "dataset": key,
    } | changes
    return {name: value for name, value in item.items() if value is not None}


def test_one_call_with_everything():
    processor = RecordingProcessor()
    items = [make_item("a"), make_item("b", image=["only view"], action=np.zeros((4, 7), np.float32))]
    batch = VLADataCollator(processor)(items)
    arguments = processor.arguments
    assert set(arguments) == {"images", "text", "state", "actions", "unnorm_key", "return_tensors"}
    assert arguments["images"] == [["front of a", "wrist of a"], ["only view"]]
    assert arguments["text"] == ["task of a", "task of b"]
    assert arguments["unnorm_key"] == ["a", "b"]
    assert arguments["return_tensors"] == "pt"
    assert arguments["state"].shape == (2, 1, 8)
    assert arguments["state"].dtype == arguments["actions"].dtype == np.float32
    np.testing.assert_array_equal(arguments["actions"], np.stack([item["action"] for item in items]))
    assert batch["input_ids"].shape == (2, 3)
    assert batch["action_mask"].dtype == torch.bool
    assert batch["action_mask"].tolist() == [[True, True, False, False]] * 2


def test_without_state_and_mask():
    processor = RecordingProcessor()
    batch = VLADataCollator(processor)([make_item(state=None, action_mask=None)] * 3)
    assert processor.arguments["state"] is None
    assert "action_mask" not in batch


def test_sample_weights_are_passed_on():
    items = [make_item("a", sample_weight=0.5), make_item("b", sample_weight=2)]
    weight = VLADataCollator(RecordingProcessor())(items)["sample_weight"]
    assert weight.dtype == torch.float32 and weight.tolist() == [0.5, 2.0]
    assert "sample_weight" not in VLADataCollator(RecordingProcessor())([make_item()])


@pytest.mark.parametrize("name", ["state", "action_mask"])
def test_state_or_mask_in_some_items_only(name):
    with pytest.raises(ValueError, match=rf"1 of 2 items in the batch have '{name}', an item of 'b' has none"):
        VLADataCollator(RecordingProcessor())([make_item("a"), make_item("b", **{name: None})])


@pytest.mark.parametrize("name", ["image", "lang", "action", "dataset"])
def test_item_that_lacks_something(name):
    with pytest.raises(ValueError, match=rf"item 1 of the batch lacks {name}"):
        VLADataCollator(RecordingProcessor())([make_item(), make_item(**{name: None})])


def test_shapes_that_differ():
    items = [make_item("a"), make_item("b", action=np.zeros((4, 6), np.float32))]
    with pytest.raises(ValueError, match=r"shape of 'action'.*\(4, 7\) of 'a'.*\(4, 6\) of 'b'"):
        VLADataCollator(RecordingProcessor())(items)


def test_empty_batch():
    with pytest.raises(ValueError, match="at least one item"):
        VLADataCollator(RecordingProcessor())([])


def test_items_of_a_real_dataset(reference_datasets):
    dataset = LeRobotDataset(reference_datasets / "v21_video", 6, cameras=["front"])
    processor = RecordingProcessor()
    batch = VLADataCollator(processor)([dataset[0], dataset[9], dataset[-1]])
    assert processor.arguments["actions"].shape == (3, 6, 7)
    assert processor.arguments["state"].shape == (3, 1, 8)
    assert processor.arguments["unnorm_key"] == ["synthetic"] * 3
    assert [image.size for (image,) in processor.arguments["images"]] == [(128, 96)] * 3
    assert batch["action_mask"].sum(1).tolist() == [6, 2, 1]
