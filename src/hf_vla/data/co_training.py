"""Co-training: robot samples and conversations in the same batches, each with a batch size of its own.

    mixture item   0   1   2   3 | 4   5   6   7 | …      4 robot samples per batch
    conversations  0 1     2     | 3 4     5     | …      3 conversations per batch

Each mixture item brings its share of the conversations, so that every batch of `vla_batch_size` consecutive items has
`vlm_batch_size` conversations. Which ones is a function of seed, epoch and index alone, as the mixture's draws are: the
stream is the same under any number of workers and processes, and a resumed run continues with the next one.
"""

import logging
from bisect import bisect_right
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from typing import Any

import numpy as np
from torch.utils.data import ConcatDataset, Dataset

from .collator import VLMDataCollator
from .mixture import DatasetMixture

logger = logging.getLogger(__name__)

_MAX_ATTEMPTS = 100


class CoTrainingDataset(Dataset):
    """A mixture whose items bring conversations along, under the key `conversations`. Read it in order.

    All conversations are read once in a random order, then all again in another order, and so on.

    Args:
        mixture: the robot samples.
        conversations: `LlavaDataset`s, taken together. Those with on_error="skip" have a conversation whose image can't be
            read replaced by the next one, which is logged, and counted in the mixture's `num_skipped`.
        vla_batch_size, vlm_batch_size: robot samples, and conversations, in a batch of one process.

    Raises:
        ValueError: no mixture, no conversations, or batch sizes below 1.
    """

    def __init__(
        self, mixture: DatasetMixture, conversations: Sequence[Dataset], vla_batch_size: int, vlm_batch_size: int
    ) -> None:
        if not isinstance(mixture, DatasetMixture):
            raise ValueError(
                f"co-training reads its robot samples in the order of a DatasetMixture, not from a {type(mixture).__name__}; "
                "give DatasetMixture([dataset])"
            )
        if not conversations:
            raise ValueError("co-training needs at least one dataset of conversations")
        for name, size in (("vla_batch_size", vla_batch_size), ("vlm_batch_size", vlm_batch_size)):
            if size < 1:
                raise ValueError(f"{name} is {size}; it must be at least 1")
        self.mixture = mixture
        self.conversations = ConcatDataset(conversations)
        self.vla_batch_size = vla_batch_size
        self.vlm_batch_size = vlm_batch_size

    def __len__(self) -> int:
        return len(self.mixture)

    def set_epoch(self, epoch: int) -> None:
        """Change the mixture's epoch."""
        self.mixture.set_epoch(epoch)

    @property
    def statistics(self) -> dict[str, dict[str, Any]]:
        """The mixture's statistics."""
        return self.mixture.statistics

    @property
    def identity(self) -> dict[str, Any]:
        """What determines the items and their order, for JSON; the place of the files does not matter."""
        members = [getattr(member, "identity", {}) for member in self.conversations.datasets]
        ratio = str(Fraction(self.vlm_batch_size, self.vla_batch_size))
        return self.mixture.identity | {"conversations": members, "conversations_per_sample": ratio}

    def sample_id(self, index: int) -> dict[str, Any]:
        """Return the mixture's `sample_id`, and the `conversations` that come with the item: file name and number in it."""
        return self.mixture.sample_id(index) | {
            "conversations": [self._where(self.draw(place)) for place in self.draws(index)]
        }

    def _where(self, position: int) -> list:
        member = bisect_right(self.conversations.cumulative_sizes, position)
        before = self.conversations.cumulative_sizes[member - 1] if member else 0
        return [str(getattr(self.conversations.datasets[member], "name", member)), position - before]

    def draws(self, index: int) -> range:
        """Return the positions in the epoch's stream of conversations that come with item `index`."""
        return range(self._first(index), self._first(index + 1))

    def draw(self, place: int, attempt: int = 0) -> int:
        """Return the conversation at a position of this epoch's stream; `attempt` counts unreadable ones before it."""
        number = self.mixture.epoch * self._first(len(self)) + place
        turn, position = divmod(number, len(self.conversations))
        order = _order(self.mixture.seed, turn, len(self.conversations))
        return int(order[(position + attempt) % len(order)])

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.mixture[index] | {"conversations": [self._conversation(place) for place in self.draws(index)]}

    def _first(self, index: int) -> int:
        # Rounded up: the first item of a batch always brings one, so that no batch, however short, is without.
        return -(-index * self.vlm_batch_size // self.vla_batch_size)

    def _conversation(self, place: int) -> dict[str, Any]:
        for attempt in range(_MAX_ATTEMPTS):
            position = self.draw(place, attempt)
            try:
                return self.conversations[position]
            except (OSError, ValueError) as error:
                member = self.conversations.datasets[bisect_right(self.conversations.cumulative_sizes, position)]
                if getattr(member, "on_error", "raise") == "raise":
                    raise
                self.mixture.count_skipped()
                logger.warning("skipped conversation %d: %s", position, error)
                failure = error
        raise OSError(
            f"{_MAX_ATTEMPTS} conversations in a row can't be read, the last because: {failure}"
        ) from failure


@lru_cache(maxsize=2)
def _order(seed: int, turn: int, length: int) -> np.ndarray:
    # 2: a stream of its own, apart from the mixture's augmentation, which draws by [seed, epoch, index].
    return np.random.default_rng([seed, turn, 0, 2]).permutation(length)


class CoTrainingCollator:
    """Makes a batch of `CoTrainingDataset` items: the robot's, and that of the conversations under `vlm_batch`.

    Args:
        collator: makes the robot's batch, a `VLADataCollator`. Items without conversations become its batch alone.
        processor: the policy's; it must have `encode_conversations`.

    Raises:
        ValueError: a processor that can't encode conversations.
    """

    def __init__(self, collator: Any, processor: Any) -> None:
        if not hasattr(processor, "encode_conversations"):
            raise ValueError(
                f"{type(processor).__name__} can't encode conversations, which co-training needs: give it an "
                "encode_conversations(images, conversations), as VLAProcessor has"
            )
        self.collator = collator
        self.collate_conversations = VLMDataCollator(processor)

    def __call__(self, items: list[dict[str, Any]]) -> Any:
        conversations = [conversation for item in items for conversation in item.get("conversations", ())]
        batch = self.collator(items)
        # Plain dicts, because BatchFeature.to would leave what is nested in it where it is.
        return {**batch, "vlm_batch": {**self.collate_conversations(conversations)}} if conversations else batch
