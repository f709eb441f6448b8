"""Labelling datasets for RECAP: a value function on the frozen policy's states, and by it each frame's advantage (2511.14759).

A value function is fitted several times, each time without some episodes, which it then judges: no episode is judged by one that was
fitted on it (the left-out episodes only choose the epoch).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers.utils import logging

from ..data import LeRobotDataset
from ..data.advantage_labels import check_tag, tags, write_labels
from ..data.advantages import advantages, returns, threshold
from ..data.outcomes import POLICY, Outcome, read_outcomes
from ..inference.fingerprint import fingerprint
from ..modeling.critic import DistributionalCritic, mean_states
from ..training_args.continued import differences_of_inputs

logger = logging.get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class LabelSettings:
    """How frames are labelled.

    Args:
        lookahead: N of the N-step advantage, in frames.
        positive_share: share of each task's frames of the policy's own episodes that are positive; all of demonstrations and of a
            human's corrections are.
        failure_cost: what a failure costs at its end, in steps; by default the length of the task's longest episode, after which
            all returns of failures are -1.
        folds: how many value functions are fitted, each without one part of the episodes.
        epochs, batch_size, learning_rate, hidden_size: of their training. The epoch with the lowest loss on the left-out episodes
            is kept.
        seed: of the parts, the weights and the order of the frames.

    Raises:
        ValueError: a number out of range.
    """

    lookahead: int = 50
    positive_share: float = 0.4
    failure_cost: float | None = None
    folds: int = 5
    epochs: int = 20
    batch_size: int = 256
    learning_rate: float = 1e-3
    hidden_size: int = 256
    seed: int = 0

    def __post_init__(self):
        for name, least in (("lookahead", 1), ("folds", 2), ("epochs", 1), ("batch_size", 1), ("hidden_size", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        if not 0 < self.positive_share < 1 or self.learning_rate <= 0:
            raise ValueError(
                f"positive_share is {self.positive_share}, learning_rate {self.learning_rate}; the share must be between 0 and 1, "
                "the rate positive"
            )
        if self.failure_cost is not None and self.failure_cost < 0:
            raise ValueError(f"failure_cost is {self.failure_cost}; it must be 0 or more")


@dataclass(frozen=True)
class TaskReport:
    """What labelling a task came to.

    Attributes:
        task: the instruction.
        solved, failed: episodes.
        correlation: Spearman's rank correlation between the values of solved episodes' frames and the steps left, negated, so that
            1 is best; None without a solved episode of more than one value.
        value_solved, value_failed: the mean value of the frames of either; None if there are none.
        threshold: above which an advantage of the policy's own frames is positive; None without such frames.
        positive: {source: share of its frames that are positive}.
    """

    task: str
    solved: int
    failed: int
    correlation: float | None
    value_solved: float | None
    value_failed: float | None
    threshold: float | None
    positive: dict[str, float]


@dataclass
class _Episodes:
    """The frames of one dataset, in order; the arrays have N rows."""

    dataset: LeRobotDataset
    outcomes: list[Outcome]
    means: torch.Tensor
    states: torch.Tensor | None


def label(
    policy,
    datasets: Sequence[LeRobotDataset],
    tag: str,
    settings: LabelSettings | None = None,
    *,
    source: str | None = None,
    assume_success: bool = False,
    overwrite: bool = False,
    progress: bool = True,
    batch_size: int = 32,
    num_workers: int = 0,
) -> list[TaskReport]:
    """Write returns, values and advantages beside datasets; see [`hf_vla.data.advantage_labels`] for the files.

    Args:
        policy: a [`~hf_vla.Policy`], whose backbone's states are read; it stays as it is.
        datasets: with all their episodes. Tasks (instructions) that several share are judged together.
        tag: part of the files' names, and what training names (`advantage`).
        settings: how.
        source, assume_success: as for [`~hf_vla.data.outcomes.read_outcomes`].
        overwrite: replace labels of the same tag.
        progress: whether to show a progress bar.
        batch_size, num_workers: of reading the frames.

    Returns:
        One report per task.

    Raises:
        ValueError: nothing tells which episodes were solved, a task has no solved one, there are too few episodes, the data is not
            what the policy was trained on, or only some of the datasets have the robot's state.
        FileExistsError: there are labels of that tag.
    """
    settings = settings or LabelSettings()
    check_tag(tag)
    for dataset in datasets:
        check_views(policy, dataset)
        if tag in tags(dataset.root) and not overwrite:
            raise FileExistsError(
                f"{dataset.name} has labels of the tag {tag!r} already; choose another, or overwrite them"
            )
    outcomes = [list(read_outcomes(dataset, source, assume_success).values()) for dataset in datasets]
    everything = [outcome for of_dataset in outcomes for outcome in of_dataset]
    _check_outcomes(everything, settings)
    read = [
        _Episodes(dataset, own, *read_states(policy, dataset, batch_size, num_workers, progress))
        for dataset, own in zip(datasets, outcomes, strict=True)
    ]
    longest = {task: max(len(o) for o in everything if o.task == task) for task in {o.task for o in everything}}
    targets = [returns(outcome, longest[outcome.task], settings.failure_cost) for outcome in everything]
    values = fit_values(read, everything, np.concatenate(targets), settings)
    own = [
        advantages(outcome, value, longest[outcome.task], settings.lookahead, settings.failure_cost)
        for outcome, value in zip(everything, values, strict=True)
    ]
    limits = _thresholds(everything, own, settings.positive_share)
    positive = [
        (outcome.source != POLICY) | (advantage > limits.get(outcome.task, np.inf))
        for outcome, advantage in zip(everything, own, strict=True)
    ]
    about = {
        "policy": fingerprint(policy.model, policy.processor),
        "thresholds": limits,
        "longest": longest,
        "settings": asdict(settings),
    }
    first = 0
    for episodes in read:
        count = len(episodes.outcomes)
        part = slice(first, first + count)
        first += count
        lengths = [len(outcome) for outcome in episodes.outcomes]
        columns = {
            "episode_index": np.repeat(episodes.dataset.episode_indices, lengths),
            "frame_index": np.concatenate([np.arange(length) for length in lengths]),
            "return": np.concatenate(targets[part]),
            "value": np.concatenate(values[part]),
            "advantage": np.concatenate(own[part]),
            "positive": np.concatenate(positive[part]),
            "source": np.concatenate([outcome.source for outcome in episodes.outcomes]),
        }
        write_labels(episodes.dataset.root, tag, columns, about, overwrite)
    return [_report(task, everything, values, positive, limits) for task in sorted(longest)]


def check_views(policy, dataset: LeRobotDataset) -> None:
    """Check that a policy can look at a dataset's frames.

    Raises:
        ValueError: its statistics key is not the policy's, or cameras or state are other ones.
    """
    known = policy.processor.statistics
    if dataset.unnorm_key not in known:
        raise ValueError(
            f"{dataset.name} has the statistics key {dataset.unnorm_key!r}, and the policy was trained on {', '.join(known)}: it can't "
            "tell values of another robot's states. Give a policy that was trained on such data, or the key by --unnorm-key"
        )
    uses_state = policy.processor.input_contract.of(dataset.unnorm_key).uses_state is not False
    if problems := differences_of_inputs(policy.processor, dataset, uses_state):
        raise ValueError(f"the policy was trained on other inputs than {dataset.name} has: {'; '.join(problems)}")


@torch.no_grad()
def read_states(
    policy, dataset: LeRobotDataset, batch_size: int, num_workers: int, progress: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return the mean of the backbone's last states of each frame, float32 (N, D), and the robot's state (N, 1, S) or None."""
    model, processor = policy.model, policy.processor
    use_state = processor.input_contract.of(dataset.unnorm_key).uses_state is not False
    collate = _Observations(processor, use_state)
    frames = DataLoader(dataset, batch_size, num_workers=num_workers, collate_fn=collate)
    means, states = [], []
    with tqdm(total=len(dataset), unit="frame", disable=not progress) as bar:
        for batch in frames:
            batch = batch.to(model.device)
            hidden, mask, state = model.observation_states(**batch)
            means.append(mean_states(hidden, mask).cpu())
            states.append(None if state is None else state.float().cpu())
            bar.update(len(hidden))
    return torch.cat(means), None if states[0] is None else torch.cat(states)


class _Observations:
    """Makes a batch of what is seen alone: of frameworks whose actions are tokens, a training batch's prompts would tell them."""

    def __init__(self, processor, use_state: bool):
        self.processor, self.use_state = processor, use_state

    def __call__(self, items: Sequence[Mapping[str, Any]]):
        return self.processor(
            images=[item["image"] for item in items],
            text=[item["lang"] for item in items],
            state=np.stack([item["state"] for item in items]) if self.use_state and "state" in items[0] else None,
            unnorm_key=[item["dataset"] for item in items],
        )


def fit_values(
    read: Sequence[_Episodes], outcomes: Sequence[Outcome], targets: np.ndarray, settings: LabelSettings
) -> list[np.ndarray]:
    """Return V of each episode's frames, by value functions that were fitted without it."""
    with_state, without = ([e.dataset.name for e in read if (e.states is None) == none] for none in (False, True))
    if with_state and without:
        raise ValueError(
            f"{', '.join(with_state)} has the robot's state and {', '.join(without)} does not; one value function can't judge both: "
            "label them under tags of their own"
        )
    means = torch.cat([episodes.means for episodes in read])
    states = None if read[0].states is None else torch.cat([episodes.states for episodes in read])
    targets = torch.from_numpy(targets).float()
    lengths = [len(outcome) for outcome in outcomes]
    parts = assign_folds(outcomes, settings.folds, settings.seed)
    of_frame = torch.from_numpy(np.repeat(parts, lengths))
    values = torch.empty(len(targets))
    for part in range(settings.folds):
        left_out = of_frame == part
        values[left_out] = _fit(means, states, targets, left_out, settings)
    return np.split(values.double().numpy(), np.cumsum(lengths)[:-1])


def assign_folds(outcomes: Sequence[Outcome], folds: int, seed: int) -> np.ndarray:
    """Return to which of `folds` parts each episode belongs: of each task's solved and failed ones about as many to each part."""
    generator = np.random.default_rng(seed)
    parts, given = np.empty(len(outcomes), dtype=np.int64), 0
    for kind in sorted({(outcome.task, outcome.success) for outcome in outcomes}):
        rows = [row for row, outcome in enumerate(outcomes) if (outcome.task, outcome.success) == kind]
        for row in generator.permutation(rows):
            parts[row] = given % folds
            given += 1
    return parts


def _fit(
    means: torch.Tensor,
    states: torch.Tensor | None,
    targets: torch.Tensor,
    left_out: torch.Tensor,
    settings: LabelSettings,
) -> torch.Tensor:
    """Fit a value function without some frames; return its values of these."""
    generator = torch.Generator().manual_seed(settings.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        size = 0 if states is None else states.shape[-1]
        critic = DistributionalCritic(means.shape[-1], size, settings.hidden_size)
    rows = (~left_out).nonzero()[:, 0]
    critic.start_from(float(targets[rows].mean()))
    bins = critic.bin_of(targets)
    optimizer = torch.optim.AdamW(critic.parameters(), settings.learning_rate, weight_decay=0.01)

    def logits(chosen: torch.Tensor) -> torch.Tensor:
        return critic.logits(means[chosen], None if states is None else states[chosen])

    judged = left_out.nonzero()[:, 0]
    best, values = float("inf"), None
    for _ in range(settings.epochs):
        for batch in rows[torch.randperm(len(rows), generator=generator)].split(settings.batch_size):
            loss = torch.nn.functional.cross_entropy(logits(batch), bins[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            told = logits(judged)
            loss = float(torch.nn.functional.cross_entropy(told, bins[judged]))
            if loss < best:
                best, values = loss, critic.expectation(told)
    if values is None:
        raise ValueError("the value function's loss is not a number; are there NaN in the policy's weights?")
    return values


def rank_correlation(one: Iterable[float], other: Iterable[float]) -> float | None:
    """Return Spearman's rank correlation; None if either has one value only."""
    ranks = [pd.Series(np.asarray(values, np.float64)).rank().to_numpy() for values in (one, other)]
    if any(np.ptp(rank) == 0 for rank in ranks):
        return None
    return float(np.corrcoef(*ranks)[0, 1])


def _check_outcomes(outcomes: Sequence[Outcome], settings: LabelSettings) -> None:
    for task in sorted({outcome.task for outcome in outcomes}):
        solved = [outcome.success for outcome in outcomes if outcome.task == task]
        if not any(solved):
            raise ValueError(
                f"none of the {len(solved)} episodes of {task!r} was solved: no frame is better than others by what is known of "
                "it. Add demonstrations or solved rollouts of this task"
            )
        if all(solved) and len(solved) > 1:
            logger.warning(
                f"all {len(solved)} episodes of {task!r} were solved: advantages tell faster from slower ones only"
            )
    if len(outcomes) < settings.folds:
        raise ValueError(
            f"there are {len(outcomes)} episodes, and {settings.folds} value functions to fit, each without a part of them; record "
            "more, or set fewer folds"
        )


def _thresholds(outcomes: Sequence[Outcome], own: Sequence[np.ndarray], share: float) -> dict[str, float]:
    """Return for each task that the policy acted in, above which advantage its frames are positive."""
    limits = {}
    for task in sorted({outcome.task for outcome in outcomes}):
        pairs = zip(outcomes, own, strict=True)
        of_policy = [a[outcome.source == POLICY] for outcome, a in pairs if outcome.task == task]
        if (values := np.concatenate(of_policy)).size:
            limits[task] = threshold(values, share)
    return limits


def _report(task, outcomes, values, positive, limits) -> TaskReport:
    rows = [row for row, outcome in enumerate(outcomes) if outcome.task == task]
    solved = [row for row in rows if outcomes[row].success]
    failed = [row for row in rows if not outcomes[row].success]
    steps = np.concatenate([outcomes[row].steps_left for row in solved])
    sources = np.concatenate([outcomes[row].source for row in rows])
    marks = np.concatenate([positive[row] for row in rows])

    def mean(chosen: list[int]) -> float | None:
        return float(np.concatenate([values[row] for row in chosen]).mean()) if chosen else None

    return TaskReport(
        task=task,
        solved=len(solved),
        failed=len(failed),
        correlation=rank_correlation(np.concatenate([values[row] for row in solved]), -steps),
        value_solved=mean(solved),
        value_failed=mean(failed),
        threshold=limits.get(task),
        positive={source: float(marks[sources == source].mean()) for source in sorted(set(sources))},
    )


def report_lines(reports: Sequence[TaskReport]) -> list[str]:
    """Return a table of reports, as lines of text."""

    def number(value: float | None, digits: int = 2) -> str:
        return "-" if value is None else f"{value:.{digits}f}"

    lines = []
    for report in reports:
        shares: dict[str, Any] = {
            source: f"{100 * share:.0f} % of {source}" for source, share in report.positive.items()
        }
        lines += [
            f"{report.task}: {report.solved} episodes solved, {report.failed} failed",
            f"  rank correlation of values with time to success {number(report.correlation)}; mean value "
            f"{number(report.value_solved)} of solved, {number(report.value_failed)} of failed",
            f"  positive above {number(report.threshold, 4)}: {', '.join(shares.values())}",
        ]
    return lines


__all__ = ["LabelSettings", "TaskReport", "label", "report_lines"]
