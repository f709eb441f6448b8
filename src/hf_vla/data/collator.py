"""`VLADataCollator`, `VLMDataCollator`: dataset items in, the processor's batch out; they run in the loader's workers."""

from typing import Any

import numpy as np
import torch

_REQUIRED = ("image", "lang", "action", "dataset")


class VLADataCollator:
    """Make a training batch of dataset items by one call of the processor.

    The items' raw states and actions are stacked to (B, 1, S) and (B, T, D), and normalised by the processor with the
    statistics that each item's `dataset` names. `action_mask` (B, T), bool, is passed on if the items have one, and so is
    `sample_weight` (B,), float32: how much each sample counts in the loss. `advantage`, "positive", "negative" or None, is given to
    the processor if the items have one. The
    `image_mask` and `state_mask` of history are not, as no processor takes them. The tensors are pinned by the loader
    (`pin_memory=True`, the Trainer's default), not here: a worker must not touch the accelerator.

    Args:
        processor: called as `processor(images=, text=, state=, actions=, unnorm_key=, return_tensors="pt")`, with
            `unnorm_key` a list of one statistics key per sample.
        use_state: whether the items' states are given to the processor.

    Raises:
        ValueError: an item lacks a key, or the items differ in having a state or a mask, or in their shapes.
    """

    def __init__(self, processor: Any, use_state: bool = True) -> None:
        self.processor = processor
        self.use_state = use_state

    def __call__(self, items: list[dict[str, Any]]) -> Any:
        if not items:
            raise ValueError("a batch needs at least one item")
        for position, item in enumerate(items):
            absent = [name for name in _REQUIRED if name not in item]
            if absent:
                raise ValueError(f"item {position} of the batch lacks {', '.join(absent)}; it has {', '.join(item)}")
        batch = self.processor(
            images=[item["image"] for item in items],
            text=[item["lang"] for item in items],
            state=_stack(items, "state") if self.use_state else None,
            actions=_stack(items, "action"),
            unnorm_key=[item["dataset"] for item in items],
            return_tensors="pt",
            **_advantages(items),
        )
        mask = _stack(items, "action_mask")
        if mask is not None:
            batch["action_mask"] = torch.as_tensor(mask, dtype=torch.bool)
        weight = _stack(items, "sample_weight")
        if weight is not None:
            batch["sample_weight"] = torch.as_tensor(weight, dtype=torch.float32)
        return batch


class VLMDataCollator:
    """Make a co-training batch of `LlavaDataset` items: conversations, and labels on the assistant's turns.

    Use it in a loader of its own: a policy's `forward` takes either `labels` or `actions`.

    Args:
        processor: a policy's processor, called as `processor.encode_conversations(images, conversations)`.
    """

    def __init__(self, processor: Any) -> None:
        self.processor = processor

    def __call__(self, items: list[dict[str, Any]]) -> Any:
        if not items:
            raise ValueError("a batch needs at least one item")
        return self.processor.encode_conversations(
            [item["image"] for item in items], [item["messages"] for item in items]
        )


def _advantages(items: list[dict[str, Any]]) -> dict[str, list[str | None]]:
    """Return the items' advantages as an argument of the processor; none if no item has one."""
    present = ["advantage" in item for item in items]
    if not any(present):
        return {}
    if not all(present):
        lacking = items[present.index(False)]["dataset"]
        raise ValueError(
            f"an item of {lacking!r} has no 'advantage', others of the batch have; label all data, or none"
        )
    return {"advantage": [item["advantage"] for item in items]}


def _stack(items: list[dict[str, Any]], name: str) -> np.ndarray | None:
    """Return the items' arrays with a batch dimension in front, or None if no item has one."""
    present = [item.get(name) is not None for item in items]
    if not any(present):
        return None
    if not all(present):
        lacking = items[present.index(False)]["dataset"]
        raise ValueError(
            f"{sum(present)} of {len(items)} items in the batch have {name!r}, an item of {lacking!r} has none; "
            f"a batch needs it in all items or in none"
        )
    arrays = [np.asarray(item[name]) for item in items]
    shapes = {array.shape: item["dataset"] for array, item in zip(arrays, items, strict=True)}
    if len(shapes) > 1:
        given = ", ".join(f"{shape} of {key!r}" for shape, key in shapes.items())
        raise ValueError(f"the items of a batch must agree in the shape of {name!r}, got {given}")
    return np.stack(arrays)
