"""Co-training in the Trainer: which settings go together, and the dataset and collator for both kinds of samples."""

from collections.abc import Sequence
from typing import Any

from torch.utils.data import Dataset

from ..data import CoTrainingCollator, CoTrainingDataset
from ..training_args.arguments import VLATrainingArguments
from .engines import shards_weights


def refuse_vlm_settings(args: VLATrainingArguments) -> None:
    """Raise a ValueError if settings of co-training are given without conversations."""
    if args.vlm_per_device_train_batch_size is not None:
        raise ValueError(
            "vlm_per_device_train_batch_size is set, but there are no conversations to co-train with; set vlm_dataset"
        )


def set_up_co_training(
    model,
    args: VLATrainingArguments,
    train_dataset: Any,
    vlm_dataset: Dataset | Sequence[Dataset],
    collator,
    processor,
) -> tuple[CoTrainingDataset, CoTrainingCollator]:
    """Make the dataset and the collator of a run that trains on robot samples and on conversations in each step.

    Args:
        train_dataset: a `DatasetMixture`.
        vlm_dataset: one dataset of conversations or several, which are concatenated.
        collator: of the robot samples.

    Raises:
        ValueError: a processor that can't be co-trained, a training dataset that is not a mixture, or a conversation that
            can't be encoded.
    """
    datasets = [vlm_dataset] if isinstance(vlm_dataset, Dataset) else list(vlm_dataset)
    vla_batch_size = args.per_device_train_batch_size
    both = CoTrainingDataset(
        train_dataset, datasets, vla_batch_size, args.vlm_per_device_train_batch_size or vla_batch_size
    )
    collator = CoTrainingCollator(collator, processor)
    collator.collate_conversations([both.conversations[0]])  # fail now rather than at some step
    return both, collator


def refuse_plain_text(dataset: Any, accelerator) -> None:
    """Raise a ValueError if processes would wait for each other forever, as some call the vision tower and others do not.

    With parameters sharded over processes, all of them gather a layer's weights together when it is called.
    """
    if not isinstance(dataset, CoTrainingDataset) or accelerator.num_processes == 1:
        return
    plain = sum(getattr(member, "num_without_images", 0) for member in dataset.conversations.datasets)
    if plain and shards_weights(accelerator):
        raise ValueError(
            f"{plain} of {len(dataset.conversations)} conversations have no image. FSDP and ZeRO-3 need every process to call "
            "the same layers in every step; leave those conversations out, or train with DDP or ZeRO-2"
        )


__all__ = ["refuse_plain_text", "refuse_vlm_settings", "set_up_co_training"]
