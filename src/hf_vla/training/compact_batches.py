"""Images on their way from the loader's workers to the device: uint8 patches, which are normalised where they are used.

Of float32 patches, each repeated along time, workers would write, send and pin eight times as many bytes.
"""

import copy
from collections.abc import Mapping
from typing import Any

from ..data import CoTrainingCollator, VLADataCollator
from ..data.collator import VLMDataCollator
from ..processing.pixels import COMPACT, expand_patches, with_compact_patches


def compact(collator: Any) -> Any:
    """Return a collator that makes the same batches, but of Qwen-VL's images `compact_pixel_values` for `pixel_values`.

    Collators other than this package's own are returned as they are.
    """
    if type(collator) is CoTrainingCollator:
        collator = copy.copy(collator)
        collator.collator = compact(collator.collator)
        collator.collate_conversations = compact(collator.collate_conversations)
    elif type(collator) in (VLADataCollator, VLMDataCollator) and hasattr(collator.processor, "image_processor"):
        collator = copy.copy(collator)
        collator.processor = copy.copy(collator.processor)
        collator.processor.image_processor = with_compact_patches(collator.processor.image_processor)
    return collator


def expanded(batch: Mapping, collator: Any) -> Mapping:
    """Return a batch with `pixel_values` in place of `compact_pixel_values`, on their device; others are returned as they are.

    Args:
        collator: what `compact` was given.
    """
    if (nested := batch.get("vlm_batch")) is not None and COMPACT in nested:
        batch = {**batch, "vlm_batch": expanded(nested, collator.collate_conversations)}
    if COMPACT not in batch:
        return batch
    processor = getattr(collator, "collator", collator).processor
    pixels = {"pixel_values": expand_patches(processor.image_processor, batch[COMPACT])}
    return {name: value for name, value in batch.items() if name != COMPACT} | pixels


__all__ = ["compact", "expanded"]
