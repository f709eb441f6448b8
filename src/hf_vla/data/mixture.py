"""`DatasetMixture`: several datasets drawn from by weight, the same draw for the same (seed, epoch, index)."""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, get_worker_info

from ..robots.action_modes import ActionMode
from .augmentation import ImageAugmentation
from .checks import counted, is_integer, is_number
from .lerobot import LeRobotDataset
from .preflight import check_dataset, readable_part
from .statistics import compute_statistics

logger = logging.getLogger(__name__)

_MAX_ATTEMPTS = 100
_MAX_WORKERS = 1024
_DRAWS_AT_ONCE = 1 << 20
#: what tells this random number of an item from those of its augmentation
_OF_ADVANTAGE = 1


class DatasetMixture(Dataset):
    """A map-style dataset whose every item is a random frame of a random member.

    Item *i* of epoch *e* depends on `(seed, e, i)` alone: first the member is drawn with probability equal to its share
    of the weights, then one of its frames uniformly, both with replacement. Hence the sequence is the same under any
    number of workers and ranks, and goes on at any item after a restart: read the items in order (`shuffle=False`), from
    `DataLoader(mixture, sampler=range(k, len(mixture)))` to begin at item k, and call `set_epoch` before each epoch.

    An epoch, `len(mixture)`, is as many draws as the members have frames together, unless `epoch_size` says otherwise.

    Args:
        datasets: the members, `LeRobotDataset`s (or alike), with equal action horizon, action and state dimensions.
        weights: one positive number per member; only their ratios matter. Default: the members' numbers of frames, which
            makes every frame of the mixture equally likely.
        seed: non-negative.
        balance_by_size: multiply the weights by the members' numbers of frames: equal weights then make every frame
            equally likely.
        epoch_size: draws per epoch.
        start_share: this share of the draws, from 0 to 1, is from the starts of episodes: a random one of the first
            `start_frames` frames of a random episode. Where the robot goes is decided there, and later its own state tells
            it, so that a policy may learn to go on as it began instead of looking and listening (the copycat problem;
            C. Wen et al., "Keyframe-Focused Visual Imitation Learning", ICML 2021, who weigh such frames, too).
        start_frames: how many frames are the start of an episode.
        augmentation: changes the images of every item, drawn anew for each (seed, epoch, index).
        advantage_dropout: share of the items with an `advantage` that lose it ("advantage" is None then), drawn for each (seed,
            epoch, index).
        on_error: "raise", or "skip": an item that cannot be read (`OSError`, `ValueError`) is logged, counted in
            `num_skipped`, and another draw that depends on (seed, epoch, index) alone takes its place. Episodes whose tables
            cannot be read are left out from the beginning, of the statistics too, which is logged; all tables are read for it.

    Raises:
        ValueError: no member, wrong weights, members whose items can't be in one batch, or members that share a statistics key but
            differ in robot type, action mode, names, units, frames per second or cameras.
    """

    def __init__(
        self,
        datasets: Sequence[Dataset],
        weights: Sequence[float] | None = None,
        seed: int = 0,
        *,
        balance_by_size: bool = False,
        epoch_size: int | None = None,
        augmentation: ImageAugmentation | None = None,
        advantage_dropout: float = 0.0,
        on_error: str = "raise",
        start_share: float = 0.0,
        start_frames: int = 8,
    ) -> None:
        if isinstance(datasets, Dataset):
            raise ValueError(f"a mixture takes a list of datasets, got {datasets!r}")
        self.datasets = list(datasets)
        if not self.datasets:
            raise ValueError("a mixture needs at least one dataset")
        if not is_integer(seed, least=0) or seed >= 2**64:
            raise ValueError(f"seed must be a whole number from 0 to 2**64 - 1, got {seed!r}")
        if on_error not in ("raise", "skip"):
            raise ValueError(f"on_error is {on_error!r}; possible: 'raise', 'skip'")
        if epoch_size is not None and not is_integer(epoch_size, least=1):
            raise ValueError(f"epoch_size must be a whole number of at least 1, got {epoch_size!r}")
        if not is_number(start_share) or not 0 <= start_share <= 1:
            raise ValueError(f"start_share must be in [0, 1], got {start_share!r}")
        if not is_integer(start_frames, least=1):
            raise ValueError(f"start_frames must be a whole number of at least 1, got {start_frames!r}")
        if not isinstance(augmentation, ImageAugmentation | None):
            raise ValueError(f"augmentation must be an ImageAugmentation, got {augmentation!r}")
        if not is_number(advantage_dropout) or not 0 <= advantage_dropout < 1:
            raise ValueError(f"advantage_dropout is {advantage_dropout!r}; it must be in [0, 1)")
        labelled = [getattr(dataset, "advantage", None) is not None for dataset in self.datasets]
        if any(labelled) and not all(labelled):
            raise ValueError(
                f"{self.datasets[labelled.index(False)]!r} has no advantages and {self.datasets[labelled.index(True)]!r} has; "
                "label all members of a mixture, or none"
            )
        if on_error == "skip":
            self.datasets = [readable_part(d) if isinstance(d, LeRobotDataset) else d for d in self.datasets]
        for what in ("action_horizon", "action_dim", "state_dim"):
            values = [getattr(dataset, what) for dataset in self.datasets]
            if len(set(values)) > 1:
                given = ", ".join(
                    f"{value} of {dataset!r}" for value, dataset in zip(values, self.datasets, strict=True)
                )
                raise ValueError(
                    f"the datasets of a mixture must agree in {what}: {given}; a column mapping (columns=) can make "
                    "their states and actions alike"
                )
        for key, group in _by_key(self.datasets).items():
            _check_alike(key, group)
        # Tens of members that each keep files and decoders open would be too much for one process.
        readers = [dataset for dataset in self.datasets if hasattr(dataset, "videos")]
        shared = max((dataset.videos for dataset in readers), key=lambda videos: videos.capacity, default=None)
        for dataset in readers:
            dataset.videos = shared
        self._sizes = np.array([len(dataset) for dataset in self.datasets], dtype=np.int64)
        if weights is None:
            weights = np.ones(len(self._sizes)) if balance_by_size else self._sizes
        self.probabilities = _normalise(weights, self._sizes, balance_by_size)
        self._cumulative = np.cumsum(self.probabilities)
        self.seed = seed
        self.epoch_size = int(self._sizes.sum()) if epoch_size is None else epoch_size
        self.augmentation = augmentation
        self.advantage_dropout = advantage_dropout
        self.on_error = on_error
        self.start_share, self.start_frames = float(start_share), start_frames
        self._episode_lengths = []
        if start_share:
            if unknown := [dataset for dataset in self.datasets if not hasattr(dataset, "episode_lengths")]:
                raise ValueError(
                    f"start_share needs datasets with `episode_lengths`, which {unknown[0]!r} doesn't have"
                )
            self._episode_lengths = [np.asarray(dataset.episode_lengths) for dataset in self.datasets]
        # In shared memory, so that set_epoch also reaches worker processes that outlive the epoch.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        # One count per worker: two processes that add to one number would lose some.
        self._skipped = torch.zeros(_MAX_WORKERS, dtype=torch.int64).share_memory_()

    def __setstate__(self, state: dict[str, Any]) -> None:
        # A copy's numbers are in memory of its own, which workers would not see change either.
        self.__dict__.update(state)
        self._epoch.share_memory_()
        self._skipped.share_memory_()

    @classmethod
    def from_name(cls, name: str | Path, root: str | Path | None = None, **options: Any) -> "DatasetMixture":
        """Open a mixture described by a data file, such as "bridge_rt_1" or "libero_all"; see `load_named_mixture`."""
        from .named_mixtures import load_named_mixture

        return load_named_mixture(cls, name, root, **options)

    @property
    def epoch(self) -> int:
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Change the epoch, in this process and in all workers that it has started."""
        if epoch < 0:
            raise ValueError(f"epoch must not be negative, got {epoch}")
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return self.epoch_size

    def draw(self, index: int, attempt: int = 0) -> tuple[int, int]:
        """Return the member, and the position in it, of item `index` of this epoch; `attempt` counts skipped ones."""
        if not 0 <= index < len(self):
            raise IndexError(f"item {index} of a mixture of {len(self)}")
        member, item = self._draws(index, index + 1, attempt)
        return int(member[0]), int(item[0])

    def __getitem__(self, index: int) -> dict[str, Any]:
        member, _, item = self._read(index)
        if self.augmentation is not None:
            generator = np.random.default_rng([self.seed, self.epoch, index])
            cameras = len(getattr(self.datasets[member], "cameras", item["image"]))
            item = item | {"image": self.augmentation(item["image"], generator, cameras)}
        if "advantage" in item and self.advantage_dropout:
            drawn = np.random.default_rng([self.seed, self.epoch, index, _OF_ADVANTAGE]).random()
            item = item | {"advantage": None} if drawn < self.advantage_dropout else item
        return item

    def sample_id(self, index: int) -> dict[str, Any]:
        """Return where item `index` of this epoch comes from: `dataset` (its name), `episode` and `frame`.

        If items that cannot be read are skipped, this reads the item, to find the one that takes its place.
        """
        member, position = self.draw(index) if self.on_error == "raise" else self._read(index)[:2]
        return self.datasets[member].sample_id(position)

    @property
    def identity(self) -> dict[str, Any]:
        """What determines the items and their order, for JSON; the place of the datasets does not matter."""
        starts = {"start_share": self.start_share, "start_frames": self.start_frames} if self.start_share else {}
        return {
            **starts,
            "seed": self.seed,
            "epoch_size": self.epoch_size,
            "on_error": self.on_error,
            "augmentation": asdict(self.augmentation) if self.augmentation else None,
            **({"advantage_dropout": self.advantage_dropout} if self.advantage_dropout else {}),
            "datasets": [
                {**getattr(dataset, "identity", {}), "probability": round(float(probability), 12)}
                for dataset, probability in zip(self.datasets, self.probabilities, strict=True)
            ],
        }

    def check(self) -> None:
        """Find before training what is wrong: read all tables, open all videos, see `hf_vla.data.preflight.problems`.

        What is wrong with several members is raised together. If items that cannot be read are skipped, what is wrong with images
        is only logged.

        Raises:
            OSError, ValueError: what is wrong, with dataset, episode, frame and file as far as they apply.
        """
        errors: list[Exception] = []
        for dataset in self.datasets:
            if not isinstance(dataset, LeRobotDataset):
                continue
            try:
                check_dataset(dataset)
            except (OSError, ValueError) as error:
                if self.on_error == "raise" or isinstance(error, ValueError):
                    errors.append(error)
                else:
                    logger.warning("items with these images, and others like them, will be skipped: %s", error)
        if len(errors) == 1:
            raise errors[0]
        if errors:
            raise type(errors[0])(
                f"{len(errors)} datasets cannot be trained on: {counted(list(map(str, errors)), 10)}"
            )
        _ = self.statistics

    @property
    def num_skipped(self) -> int:
        """How many items could not be read so far and were skipped, in all processes."""
        return int(self._skipped.sum())

    @cached_property
    def statistics(self) -> dict[str, dict[str, Any]]:
        """By key, the statistics of the members.

        Members that share a key share statistics: exact ones over all their frames, each counted once whatever the
        weights.
        """
        groups = _by_key(self.datasets).items()
        return {key: group[0].statistics if len(group) == 1 else _pool(group) for key, group in groups}

    def report(self, start: int = 0, stop: int | None = None) -> list[dict[str, Any]]:
        """Return what is drawn from each member: what an epoch is expected to draw, and what this epoch's items are.

        Args:
            start, stop: count the draws of items [start, stop) of this epoch, such as those trained on so far.

        Returns:
            One dict per member: `dataset`, `unnorm_key`, `frames`, `probability` per draw, `expected_draws` per epoch,
            `expected_passes`, how often an epoch draws a frame of it on average, and `draws`, counted.
        """
        draws = np.zeros(len(self.datasets), np.int64)
        stop = len(self) if stop is None else stop
        for first in range(start, stop, _DRAWS_AT_ONCE):
            members, _ = self._draws(first, min(first + _DRAWS_AT_ONCE, stop))
            draws += np.bincount(members, minlength=len(draws))
        return [
            {
                "dataset": str(getattr(dataset, "name", dataset)),
                "unnorm_key": _unnorm_key(dataset),
                "frames": int(size),
                "probability": float(probability),
                "expected_draws": float(probability * len(self)),
                "expected_passes": float(probability * len(self) / size),
                "draws": int(count),
            }
            for dataset, size, probability, count in zip(
                self.datasets, self._sizes, self.probabilities, draws, strict=True
            )
        ]

    def count_skipped(self) -> None:
        """Add an item, or a conversation that comes with one, to `num_skipped`; from any process that reads."""
        worker = get_worker_info()
        self._skipped[0 if worker is None else (worker.id + 1) % _MAX_WORKERS] += 1

    def _read(self, index: int) -> tuple[int, int, dict[str, Any]]:
        """Return the member, the position in it, and the item: the first readable one of those drawn for `index`."""
        for attempt in range(_MAX_ATTEMPTS):
            member, position = self.draw(index, attempt)
            try:
                return member, position, self.datasets[member][position]
            except (OSError, ValueError) as error:
                if self.on_error == "raise":
                    raise
                self.count_skipped()
                logger.warning("skipped item %d of %r: %s", position, self.datasets[member], error)
                failure = error
        raise OSError(f"{_MAX_ATTEMPTS} draws in a row cannot be read, the last because: {failure}") from failure

    def _draws(self, start: int, stop: int, attempt: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Return members and positions in them of items [start, stop) of this epoch."""
        # Philox is a counter-based generator: four random words for each value of its counter.
        bits = np.random.Philox(key=[self.seed, self.epoch], counter=[start, attempt, 0, 0])
        uniform = (bits.random_raw(4 * (stop - start)).reshape(-1, 4) >> np.uint64(11)) * 2.0**-53
        member = np.searchsorted(self._cumulative, uniform[:, 0], side="right").clip(max=len(self._sizes) - 1)
        position = (uniform[:, 1] * self._sizes[member]).astype(np.int64)
        for number, lengths in enumerate(self._episode_lengths):
            chosen = (uniform[:, 2] < self.start_share) & (member == number)
            episode = (uniform[chosen, 1] * len(lengths)).astype(np.int64)
            frame = (uniform[chosen, 3] * lengths.clip(max=self.start_frames)[episode]).astype(np.int64)
            position[chosen] = (np.cumsum(lengths) - lengths)[episode] + frame
        return member, position


def _normalise(weights: Sequence[float], sizes: np.ndarray, balance_by_size: bool) -> np.ndarray:
    if not isinstance(weights, Iterable) or not all(map(is_number, weights := list(weights))):
        raise ValueError(f"weights must be a list of numbers, got {weights!r:.200}")
    weights = np.asarray(weights, dtype=np.float64)
    if weights.shape != sizes.shape:
        raise ValueError(f"{len(sizes)} datasets need {len(sizes)} weights, got {weights.size}: {weights.tolist()}")
    if not (np.isfinite(weights) & (weights > 0)).all():
        raise ValueError(f"weights must be positive numbers, got {weights.tolist()}; leave out datasets of weight 0")
    weights = weights / weights.max() * (sizes if balance_by_size else 1)
    return weights / weights.sum()


def _unnorm_key(dataset: Any) -> str:
    """Return a member's statistics key; users' own datasets may call it `key` for one more release."""
    return dataset.unnorm_key if hasattr(dataset, "unnorm_key") else dataset.key


def _by_key(datasets: Iterable[Any]) -> dict[str, list[Any]]:
    members: dict[str, list[Any]] = {}
    for dataset in datasets:
        members.setdefault(_unnorm_key(dataset), []).append(dataset)
    return members


def _check_alike(key: str, datasets: list[Any]) -> None:
    """Raise a ValueError unless members that share a statistics key are of one robot, as far as they say."""
    first = datasets[0]
    robots = {robot.name: dataset for dataset in datasets if (robot := getattr(dataset, "robot", None))}
    if len(robots) > 1:
        given = ", ".join(f"{robot} of {dataset!r}" for robot, dataset in robots.items())
        raise ValueError(
            f"datasets with the statistics key {key!r} must be of one robot type: {given}; give each robot type a key of its "
            "own by unnorm_key"
        )
    modes = {getattr(dataset, "mode_of_actions", ActionMode()): dataset for dataset in datasets}
    if len(modes) > 1:
        given = ", ".join(f"{mode} of {dataset!r}" for mode, dataset in modes.items())
        raise ValueError(f"datasets with the statistics key {key!r} must agree in action_mode: {given}")
    for what, of in _ALIKE.items():
        known = [(dataset, value) for dataset in datasets if (value := of(dataset)) is not None]
        for dataset, value in known[1:]:
            expected = known[0][1]
            if value == expected:
                continue
            order = " in another order" if isinstance(value, list) and sorted(value) == sorted(expected) else ""
            raise ValueError(
                f"datasets with the statistics key {key!r} are one robot's, and must agree in {what}{order}: {value} of {dataset!r}, "
                f"{expected} of {known[0][0]!r}. Give them keys of their own by unnorm_key, or make them alike by a column mapping "
                "(columns)"
            )
    for dataset in datasets[1:]:
        ours, theirs = (getattr(each, "camera_names", None) for each in (first, dataset))
        if ours is None or theirs is None:
            continue
        if len(ours) != len(theirs) or any(a.isdisjoint(b) for a, b in zip(ours, theirs, strict=True)):
            raise ValueError(
                f"datasets with the statistics key {key!r} are one robot's, and must agree in cameras: {dataset.cameras} of "
                f"{dataset!r}, {first.cameras} of {first!r}. Choose them by cameras, give them names by images: in a column mapping, "
                "or give the datasets keys of their own by unnorm_key"
            )


# What members with one statistics key must agree in, as far as they say.
_ALIKE: dict[str, Callable[[Any], Any]] = {
    "frames per second": lambda dataset: getattr(dataset, "fps", None),
    "the names of actions": lambda dataset: getattr(dataset, "action_names", None),
    "the names of states": lambda dataset: getattr(dataset, "state_names", None),
    "units": lambda dataset: getattr(dataset, "units", None),
}


def _pool(datasets: list[Any]) -> dict[str, Any]:
    mode = getattr(datasets[0], "mode_of_actions", ActionMode())
    rows = [dataset.rows() for dataset in datasets]

    def together(modality: str) -> Callable[[], Iterator[np.ndarray]]:
        return lambda: chain.from_iterable(member[modality]() for member in rows)

    return (
        compute_statistics(
            {modality: together(modality) for modality in rows[0]},
            sum(len(dataset) for dataset in datasets),
            sum(dataset.num_episodes for dataset in datasets),
        )
        | mode.entries()
    )
